"""What compressed pixels claim by themselves: a decoder takes its sizes from there, whatever the DICOM header says.

JPEG and JPEG-LS: ITU-T T.81 B.2 and T.87 (frame header, SOF); JPEG 2000: ITU-T T.800 A.5.1 (SIZ), bare or in the boxes of I.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from dagman.errors import ScanError
from dagman.scans.dicom.values import read_count, read_text

LARGEST_FRAME = 2**26
"""Pixels of a compressed frame; CT has 512 x 512 to 4096 x 4096. [ours]"""
_EXPORT_AGAIN = "Copy or export the series again"
_SYNTAXES = frozenset([*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes])
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
"""Markers of JPEG's frame headers, and of JPEG-LS's."""
_BARE = frozenset(range(0xD0, 0xD9)) | {0x01}
"""Markers without a length."""
_SEVERAL = 0xDE
"""Opens a hierarchical JPEG, which holds several sizes and is not DICOM's."""
_BOXES, _CODESTREAM, _SIZ = b"\x00\x00\x00\x0cjP  ", b"\xff\x4f", b"\xff\x51"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Size of a frame: `samples` values a pixel, of `bits` each."""

    rows: int
    columns: int
    samples: int
    bits: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} pixels of {self.samples} x {self.bits} bits"


def check_streams(data: Dataset, shape: tuple[int, int, int]) -> None:
    """Refuse compressed frames that are more than the header claims (rows, columns, frames), before a decoder takes its room.

    What is compressed otherwise is left to its decoder: RLE unpacks to at most 64 bytes for one.
    Raises ScanError, naming the frame and both sizes.
    """
    syntax = read_text(getattr(data, "file_meta", Dataset()), "TransferSyntaxUID")
    if syntax not in _SYNTAXES:
        return
    rows, columns, frames = shape
    most = Claim(
        rows=rows, columns=columns, samples=read_count(data, "SamplesPerPixel", 1), bits=read_count(data, "BitsAllocated", 8)
    )
    if rows * columns > LARGEST_FRAME:
        what = f"its header claims {rows} x {columns} pixels per compressed frame, more than {LARGEST_FRAME}"
        raise ScanError(what, do=_EXPORT_AGAIN)
    number = 0
    for number, stream in enumerate(generate_frames(data.PixelData, number_of_frames=frames), start=1):
        claim = read_claim(stream)
        if (claim.rows, claim.columns) != (rows, columns) or claim.samples > most.samples or claim.bits > most.bits:
            raise ScanError(f"compressed frame {number} claims {claim}, its header {most}", do=_EXPORT_AGAIN)
    if number < frames:
        raise ScanError(f"holds {number} compressed frames, but its header claims {frames}", do=_EXPORT_AGAIN)


def read_claim(stream: bytes) -> Claim:
    """The size that a JPEG, JPEG-LS or JPEG 2000 stream gives; raises ScanError where there is none."""
    try:
        claim = _read_jpeg(stream) if stream[:2] == b"\xff\xd8" else _read_jpeg_2000(stream)
    except IndexError:
        claim = None
    if claim is None:
        raise ScanError("a compressed frame does not give its size where JPEG and JPEG 2000 do", do=_EXPORT_AGAIN)
    return claim


def _read_jpeg(stream: bytes) -> Claim | None:
    place = 2
    while stream[place] == 0xFF:
        marker = stream[place + 1]
        # Any number of 0xFF may stand before a marker.
        if marker == 0xFF or marker in _BARE:
            place += 1 if marker == 0xFF else 2
        elif marker in _SIZES:
            rows, columns = _read_number(stream, place + 5, 2), _read_number(stream, place + 7, 2)
            return Claim(rows=rows, columns=columns, samples=stream[place + 9], bits=stream[place + 4])
        elif marker == _SEVERAL:
            return None
        else:
            place += 2 + _read_number(stream, place + 2, 2)
    return None


def _read_jpeg_2000(stream: bytes) -> Claim | None:
    place = _find_codestream(stream)
    if place is None or stream[place : place + 2] != _CODESTREAM or stream[place + 2 : place + 4] != _SIZ:
        return None
    # Behind the markers: the segment's length, capabilities, then the far corner and the near one.
    right, bottom, left, top = (_read_number(stream, place + 8 + 4 * index, 4) for index in range(4))
    samples = _read_number(stream, place + 40, 2)
    bits = max((stream[place + 42 + 3 * index] & 0x7F) + 1 for index in range(max(1, samples)))
    return Claim(rows=bottom - top, columns=right - left, samples=samples, bits=bits)


def _find_codestream(stream: bytes) -> int | None:
    if stream[:8] != _BOXES:
        return 0
    place = 0
    while place + 8 <= len(stream):
        length, kind = _read_number(stream, place, 4), stream[place + 4 : place + 8]
        header = 16 if length == 1 else 8
        if kind == b"jp2c":
            return place + header
        length = _read_number(stream, place + 8, 8) if length == 1 else length
        if length < header:
            return None
        place += length
    return None


def _read_number(stream: bytes, place: int, count: int) -> int:
    part = stream[place : place + count]
    if len(part) < count:
        raise IndexError
    return int.from_bytes(part, "big")
