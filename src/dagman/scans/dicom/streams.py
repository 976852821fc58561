"""Checks the image size that compressed pixels claim, which decoders use regardless of the DICOM header.

JPEG and JPEG-LS: ITU-T T.81 B.2 and T.87 (frame header, SOF). JPEG 2000: ITU-T T.800 A.5.1 (SIZ), bare or in the boxes of I.4.
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
"""Largest number of pixels of a compressed frame; CT has 512 x 512 to 4096 x 4096. [ours]"""
_EXPORT_AGAIN = "Copy or export the series again"
_SYNTAXES = frozenset([*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes])
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
"""Markers of frame headers in JPEG and JPEG-LS."""
_BARE = frozenset(range(0xD0, 0xD9)) | {0x01}
"""Markers without a length."""
_HIERARCHICAL = 0xDE
"""Marker of a hierarchical JPEG, which has several sizes and does not occur in DICOM."""
_BOXES, _CODESTREAM, _SIZ = b"\x00\x00\x00\x0cjP  ", b"\xff\x4f", b"\xff\x51"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The size of a frame, with `samples` values per pixel of `bits` each."""

    rows: int
    columns: int
    samples: int
    bits: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} pixels of {self.samples} x {self.bits} bits"


def check_streams(data: Dataset, shape: tuple[int, int, int]) -> None:
    """Refuse compressed frames that are larger than the header claims, before a decoder allocates memory for them.

    Other kinds of compression are left to their decoders: RLE expands one byte to at most 64.

    Args:
        data: the data set.
        shape: rows, columns and frames as claimed by its header.

    Raises:
        ScanError: naming the frame and both sizes.
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
        raise ScanError(f"has {number} compressed frames, but its header claims {frames}", do=_EXPORT_AGAIN)


def read_claim(stream: bytes) -> Claim:
    """Read the size claimed by a JPEG, JPEG-LS or JPEG 2000 stream.

    Raises:
        ScanError: if the stream does not state its size.
    """
    try:
        claim = _read_jpeg(stream) if stream[:2] == b"\xff\xd8" else _read_jpeg_2000(stream)
    except IndexError:
        claim = None
    if claim is None:
        raise ScanError("a compressed frame does not state its size as JPEG and JPEG 2000 do", do=_EXPORT_AGAIN)
    return claim


def _read_jpeg(stream: bytes) -> Claim | None:
    offset = 2
    while stream[offset] == 0xFF:
        marker = stream[offset + 1]
        # Any number of 0xFF bytes may precede a marker.
        if marker == 0xFF or marker in _BARE:
            offset += 1 if marker == 0xFF else 2
        elif marker in _FRAME_HEADERS:
            rows, columns = _read_number(stream, offset + 5, 2), _read_number(stream, offset + 7, 2)
            return Claim(rows=rows, columns=columns, samples=stream[offset + 9], bits=stream[offset + 4])
        elif marker == _HIERARCHICAL:
            return None
        else:
            offset += 2 + _read_number(stream, offset + 2, 2)
    return None


def _read_jpeg_2000(stream: bytes) -> Claim | None:
    offset = _find_codestream(stream)
    if offset is None or stream[offset : offset + 2] != _CODESTREAM or stream[offset + 2 : offset + 4] != _SIZ:
        return None
    # The markers are followed by the segment's length, capabilities, then the bottom right and the top left corner.
    right, bottom, left, top = (_read_number(stream, offset + 8 + 4 * index, 4) for index in range(4))
    samples = _read_number(stream, offset + 40, 2)
    bits = max((stream[offset + 42 + 3 * index] & 0x7F) + 1 for index in range(max(1, samples)))
    return Claim(rows=bottom - top, columns=right - left, samples=samples, bits=bits)


def _find_codestream(stream: bytes) -> int | None:
    if stream[:8] != _BOXES:
        return 0
    offset = 0
    while offset + 8 <= len(stream):
        length, kind = _read_number(stream, offset, 4), stream[offset + 4 : offset + 8]
        header = 16 if length == 1 else 8
        if kind == b"jp2c":
            return offset + header
        length = _read_number(stream, offset + 8, 8) if length == 1 else length
        if length < header:
            return None
        offset += length
    return None


def _read_number(stream: bytes, offset: int, count: int) -> int:
    part = stream[offset : offset + count]
    if len(part) < count:
        raise IndexError
    return int.from_bytes(part, "big")
