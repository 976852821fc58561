"""A compressed DICOM frame is decoded only if its own stream claims no more than the header: decoders take the stream's word."""

from __future__ import annotations

import struct

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from dagman.errors import ScanError
from dagman.scans.dicom.pixels import decode_frames
from dagman.scans.dicom.streams import LARGEST_FRAME, Claim, check_streams, read_claim
from dagman.scans.discovery import find_series
from dagman.scans.inspection import inspect_series
from dagman.scans.reading import read_scan

_SOF55, _SIZ = b"\xff\xf7", b"\xff\x51"


def make_jpeg(rows=7, columns=9, samples=1, bits=12, marker=0xC3, before=b""):
    """The start of a JPEG as far as its frame header, behind a comment and a filled marker."""
    frame = struct.pack(">HBHHB", 8 + 3 * samples, bits, rows, columns, samples) + bytes(3 * samples)
    return b"\xff\xd8" + before + b"\xff\xfe\x00\x04ab" + b"\xff\xff" + bytes([0xFF, marker]) + frame


def make_siz(width=9, height=7, left=0, top=0, samples=1, bits=16):
    """The start of a JPEG 2000 codestream."""
    numbers = struct.pack(">HHIIIIIIIIH", 38 + 3 * samples, 0, width, height, left, top, width, height, 0, 0, samples)
    return b"\xff\x4f\xff\x51" + numbers + bytes([bits - 1 | 0x80, 1, 1]) * samples


@pytest.mark.parametrize(
    ("stream", "claim"),
    [
        (make_jpeg(), (7, 9, 1, 12)),
        (make_jpeg(marker=0xF7, bits=16, samples=3), (7, 9, 3, 16)),
        # A Huffman table (C4) is no frame header, and a thumbnail in a segment is not the image.
        (make_jpeg(before=b"\xff\xc4\x00\x04ab" + b"\xff\xe1\x00\x08" + make_jpeg()[:6]), (7, 9, 1, 12)),
        (make_siz(left=2, top=3), (4, 7, 1, 16)),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x0cuuid\xff\x4f\xff\x51" + b"\0\0\0\0jp2c" + make_siz(), (7, 9, 1, 16)),
    ],
)
def test_the_size_is_read_where_a_decoder_reads_it(stream, claim):
    assert read_claim(stream) == Claim(rows=claim[0], columns=claim[1], samples=claim[2], bits=claim[3])


@pytest.mark.parametrize(
    "stream", [b"", b"\xff\xd8", make_jpeg()[:17], make_siz()[:30], b"GIF89a" + bytes(99), make_jpeg(before=b"\xff\xde\x00\x02")]
)
def test_a_stream_without_a_size_is_refused(stream):
    with pytest.raises(ScanError, match="does not state its size"):
        read_claim(stream)


def edit(path, syntax, claim):
    """Write other sizes into a file's stream: (rows, columns) of what a decoder will make room for."""
    data = pydicom.dcmread(path)
    content = bytearray(data.PixelData)
    if syntax == JPEG2000Lossless:
        place = content.index(_SIZ) + 6
        content[place : place + 8] = struct.pack(">II", claim[1], claim[0])
    else:
        place = content.index(_SOF55) + 5
        content[place : place + 4] = struct.pack(">HH", *claim)
    data.PixelData = bytes(content)
    data.save_as(path)


@pytest.mark.parametrize("claim", [(60000, 60000), (57, 48), (48, 57)])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless], ids=["jpeg-2000", "jpeg-ls"])
def test_a_stream_of_another_size_than_the_header_costs_its_series_before_it_is_decoded(
    tmp_path, write_dicom, ct, placement, syntax, claim, monkeypatch
):
    # JPEG 2000 halves a slice five times.
    large = np.kron(ct[:, :, :4], np.ones((4, 4, 1), ct.dtype))
    assert claim not in (large.shape[:2], large.shape[1::-1])
    for name in ("good", "bad"):
        for path in write_dicom(tmp_path / name, large, placement):
            data = pydicom.dcmread(path)
            data.compress(syntax)
            data.save_as(path)
    assert np.array_equal(read_scan(tmp_path / "bad").voxels, read_scan(tmp_path / "good").voxels)
    edit(sorted((tmp_path / "bad").iterdir())[0], syntax, claim)
    decoded = []
    original = pydicom.FileDataset.pixel_array.fget
    monkeypatch.setattr(
        pydicom.FileDataset, "pixel_array", property(lambda data: decoded.append(str(data.filename)) or original(data))
    )
    rows = {one.source.rpartition("/")[2]: one for one in map(inspect_series, find_series(tmp_path).series)}
    assert rows["good"].accepted
    found = (
        f"compressed frame 1 claims {claim[0]} x {claim[1]} pixels of 1 x 16 bits, its header {large.shape[1]} x {large.shape[0]}"
    )
    assert found in rows["bad"].reason
    assert not any(name.endswith(sorted((tmp_path / "bad").iterdir())[0].name) and "/bad/" in name for name in decoded)


@pytest.mark.parametrize(
    ("stream", "shape", "reason"),
    [
        (make_jpeg(samples=3), (7, 9, 1), "claims 7 x 9 pixels of 3 x 12 bits, its header 7 x 9 pixels of 1 x 16 bits"),
        (make_jpeg(bits=24), (7, 9, 1), "claims 7 x 9 pixels of 1 x 24 bits"),
        (make_jpeg(), (7, 9, 4), "has 1 compressed frames, but its header claims 4"),
        (
            make_jpeg(65535, 65535),
            (65535, 65535, 1),
            f"claims 65535 x 65535 pixels per compressed frame, more than {LARGEST_FRAME}",
        ),
    ],
)
def test_more_samples_bits_frames_or_pixels_than_can_be_are_refused(stream, shape, reason):
    data = Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.SamplesPerPixel, data.BitsAllocated = 1, 16
    data.PixelData = encapsulate([stream])
    with pytest.raises(ScanError) as raised:
        check_streams(data, shape)
    assert reason in raised.value.what


@pytest.mark.parametrize(
    ("syntax", "named", "package"),
    [
        ("1.2.840.10008.1.2.4.80", "JPEG-LS Lossless", "pylibjpeg-libjpeg"),
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000", "pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.5", "RLE Lossless", "pylibjpeg-rle"),
    ],
)
def test_a_codec_that_is_missing_is_named_with_the_package_that_brings_it(monkeypatch, syntax, named, package):
    monkeypatch.setattr(Decoder, "is_available", False)
    with pytest.raises(ScanError, match=rf"its pixels are {named}.*, whose codec is not installed\. pip install {package}\."):
        decode_frames(encode_nothing(syntax))


def test_video_is_named():
    with pytest.raises(ScanError, match=r"its pixels are MPEG2 Main Profile / Main Level, for which there is no codec"):
        decode_frames(encode_nothing("1.2.840.10008.1.2.4.100"))


def encode_nothing(syntax: str) -> Dataset:
    """A slice of that transfer syntax, whose pixels nobody comes to read."""
    data = Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.Rows = data.Columns = 4
    data.PixelData = b""
    return data
