"""Uncompressed pixels are read past pydicom's decoder: as it gives them, or not at all; and rescaled as whole numbers are."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dagman.errors import ScanError
from dagman.scans.dicom.headers import read_data_set, read_planes
from dagman.scans.dicom.pixels import decode_frames, decode_plain, view_plain
from dagman.scans.dicom.plain.header_values import read_plain_slice

ROWS, COLUMNS = 5, 6


def make_data(pixels, **tags):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    described = {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": ROWS,
        "Columns": COLUMNS,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "Modality": "CT",
        **tags,
    }
    for name, value in described.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    return data


@pytest.fixture
def random_bits():
    return np.random.default_rng(5).integers(0, 2**16, 2 * ROWS * COLUMNS).astype("<u2")


def test_plain_pixels_are_those_of_pydicom(random_bits):
    cases = itertools.product((0, 1), (9, 12, 16), (1, 2), (ImplicitVRLittleEndian, ExplicitVRLittleEndian))
    for sign, bits, frames, syntax in cases:
        data = make_data(
            *(random_bits[: frames * ROWS * COLUMNS],),
            PixelRepresentation=sign,
            BitsStored=bits,
            HighBit=bits - 1,
            syntax=syntax,
            NumberOfFrames=frames,
        )
        assert np.array_equal(view_plain(data), data.pixel_array.ravel())


@pytest.mark.parametrize(
    "tags",
    [
        {"syntax": ExplicitVRBigEndian},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
        {"BitsStored": 12, "HighBit": 15},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"SamplesPerPixel": 3},
        {"Rows": ROWS + 1},
        {"PixelRepresentation": 2},
    ],
)
def test_what_is_not_plain_is_left_to_pydicom(random_bits, tags):
    assert view_plain(make_data(random_bits[: ROWS * COLUMNS], **tags)) is None


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("slope", [1, -1, 2, 16])
@pytest.mark.parametrize("intercept", [0, -1024, -8192, 40_000])
def test_whole_numbers_are_rescaled_exactly(sign, slope, intercept):
    for span in (1000, 2**16):
        stored = np.random.default_rng(1).integers(0, span, ROWS * COLUMNS).astype("<u2")
        data = make_data(stored, PixelRepresentation=sign, RescaleSlope=slope, RescaleIntercept=intercept)
        wanted = stored.view("<i2" if sign else "<u2").astype(np.int64) * slope + intercept
        values = decode_frames(data).values
        assert np.array_equal(values.ravel(), wanted)
        fits = wanted.min() >= -(2**15) and wanted.max() < 2**15
        assert values.dtype == (np.int16 if fits else np.float32)


def read_both(path):
    """Frames and planes as the plain reader gives them, None where it leaves the file to pydicom; and as pydicom does."""
    with open(path, "rb") as file:
        plain = read_plain_slice(file)
        ours = None if plain is None else (decode_plain(plain), read_planes(plain))
        data = read_data_set(file)
    return ours, (decode_frames(data), read_planes(data))


def test_real_slices_are_read_as_pydicom_reads_them(data):
    known = 0
    files = [path for folder in ("dicom-quirks", "chest-dicom") for path in sorted((data / folder).rglob("*")) if path.is_file()]
    for path in files[::7]:
        with contextlib.suppress(ScanError):
            ours, pydicoms = read_both(path)
            if ours is not None and ours[0] is not None:
                known += 1
                assert np.array_equal(ours[0].values, pydicoms[0].values)
                assert ours[0].values.dtype == pydicoms[0].values.dtype
                assert (ours[0].padded, ours[0].kept, ours[1]) == (pydicoms[0].padded, pydicoms[0].kept, pydicoms[1])
    assert known > 10


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"PixelPaddingValue": 63536, "PixelRepresentation": 0},
        {"PixelPaddingValue": -2000, "PixelRepresentation": 1},
        {"RescaleSlope": "0.5", "RescaleIntercept": "-1024"},
        {"RescaleSlope": "", "RescaleIntercept": None},
        {"BitsStored": 12, "HighBit": 11},
        {"BitsStored": 12, "HighBit": 15},
        {"PhotometricInterpretation": "PALETTE COLOR"},
    ],
)
def test_a_file_is_read_as_pydicom_reads_it_or_left_to_it(tmp_path, write_dicom, ct, placement, syntax, tags):
    path = write_dicom(tmp_path, ct, placement)[0]
    with pydicom.config.disable_value_validation():
        data = pydicom.dcmread(path)
        for name, value in tags.items():
            setattr(data, name, value)
        if "PixelPaddingValue" in tags:
            data["PixelPaddingValue"].VR = "SS" if tags["PixelRepresentation"] else "US"
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path, enforce_file_format=False)
    with open(path, "rb") as file:
        plain = read_plain_slice(file)
    left = ("PixelPaddingValue" in tags and syntax == ImplicitVRLittleEndian) or tags.get("HighBit") == 15
    assert (plain is None or view_plain(plain) is None) == (left or "PhotometricInterpretation" in tags)
    if plain is not None and view_plain(plain) is not None:
        ours, pydicoms = read_both(path)
        assert np.array_equal(ours[0].values, pydicoms[0].values)
        assert (ours[0].padded, ours[1]) == (pydicoms[0].padded, pydicoms[1])


def test_pixels_cut_short_or_too_long_are_left_to_pydicom(tmp_path, write_dicom, ct, placement):
    path = write_dicom(tmp_path, ct, placement)[0]
    whole = path.read_bytes()
    for changed in (whole[:-2], whole + bytes(8)):
        path.write_bytes(changed)
        with open(path, "rb") as file:
            assert read_plain_slice(file) is None
