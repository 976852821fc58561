"""Uncompressed pixels are read past pydicom's decoder: as it gives them, or not at all; and rescaled as whole numbers are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dagman.scans.dicom.pixels import decode_frames, view_plain

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
