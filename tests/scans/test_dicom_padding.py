"""Padding in CT: what the file calls so, by the bits that it is stored as, and only where it cannot be tissue."""

from __future__ import annotations

import numpy as np
import pytest

from dagman.errors import ScanError
from dagman.scans.reading import read_scan
from dagman.scans.verdict import judge_scan

SIDE = 40


@pytest.fixture(scope="module")
def body() -> np.ndarray:
    """40 x 40 x 6 voxels in HU: air around fat and muscle that holds water's own number here and there."""
    x, y, _ = np.mgrid[:SIDE, :SIDE, :6] - (SIDE - 1) / 2
    hu = np.where(np.hypot(x, y) < 15, -100.0, -1000.0)
    hu[np.hypot(x, y) < 12] = 10
    return np.rint(hu + np.random.default_rng(1).normal(0, 12, hu.shape)).clip(-1024, None).astype(np.int16)


def outside(radius=19.5) -> np.ndarray:
    x, y = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return np.hypot(x, y) > radius


def write(write_dicom, folder, stored, *, intercept, signed, padding, kind, limit=None):
    """Write stored numbers as they are; `kind` is the type of the tag, which may be another than the pixels'."""
    import pydicom

    paths = write_dicom(folder, np.zeros(stored.shape, np.int16), np.diag([2.0, 2, 2, 1]), RescaleIntercept=intercept)
    for index, path in enumerate(paths):
        data = pydicom.dcmread(path)
        data.PixelRepresentation = int(signed)
        data.PixelData = stored[:, :, index].T.astype("<i2" if signed else "<u2").tobytes()
        data.add_new("PixelPaddingValue", kind, padding)
        if limit is not None:
            data.add_new("PixelPaddingRangeLimit", kind, limit)
        data.save_as(path)
    return read_scan(folder)


@pytest.mark.parametrize(("signed", "padding", "kind"), [(False, -2000, "SS"), (True, 63536, "US"), (True, -2000, "SS")])
def test_a_padding_value_means_the_bits_that_the_pixels_have(tmp_path, write_dicom, body, signed, padding, kind):
    stored = body.astype(np.int32) + 1024
    stored[outside()] = -2000 if signed else 63536
    scan = write(write_dicom, tmp_path, stored, intercept=-1024, signed=signed, padding=padding, kind=kind)
    assert (scan.voxels[outside()] == -1024).all()
    assert np.array_equal(scan.voxels[~outside()], body[~outside()])
    count = int(outside().sum()) * 6
    assert f"{count} of 9600 voxels ({count / 9600:.1%}) are padding (PixelPaddingValue), set to -1024 HU" in scan.notes
    assert judge_scan(scan).accepted


def test_a_range_of_padding_of_the_other_signedness_is_read(tmp_path, write_dicom, body):
    stored = body.astype(np.int32) + 1024
    stored[outside()] = 63536
    stored[0, 0] = 63530
    scan = write(write_dicom, tmp_path, stored, intercept=-1024, signed=False, padding=-2000, limit=-2010, kind="SS")
    assert (scan.voxels[outside()] == -1024).all()


def test_tissue_that_has_the_number_of_the_padding_is_kept(tmp_path, write_dicom, body):
    count = int((body == 0).sum())
    assert count > 20
    scan = write(write_dicom, tmp_path, body, intercept=0, signed=True, padding=0, kind="SS")
    assert np.array_equal(scan.voxels, body)
    assert (
        f"{count} voxels within the image equal the padding value, which is also a plausible tissue value; they were kept"
        in scan.notes
    )


def test_tissue_at_the_border_that_has_the_number_of_the_padding_is_kept(tmp_path, write_dicom):
    tissue = np.rint(np.random.default_rng(2).normal(10, 12, (SIDE, SIDE, 6))).astype(np.int16)
    scan = write(write_dicom, tmp_path, tissue, intercept=0, signed=True, padding=0, kind="SS")
    assert np.array_equal(scan.voxels, tissue)


def test_padding_of_tissues_number_around_the_field_becomes_air(tmp_path, write_dicom, body):
    stored = body.copy()
    stored[outside()] = 0
    scan = write(write_dicom, tmp_path, stored, intercept=0, signed=True, padding=0, kind="SS")
    assert (scan.voxels[outside()] == -1024).all()
    assert np.array_equal(scan.voxels[~outside()], body[~outside()])


def test_a_scan_that_is_padding_for_the_most_part_is_refused(tmp_path, write_dicom, body):
    stored = body.astype(np.int32)
    stored[outside(4)] = -2000
    with pytest.raises(ScanError, match=r"9\d% of its voxels are padding \(PixelPaddingValue\)"):
        write(write_dicom, tmp_path, stored, intercept=0, signed=True, padding=-2000, kind="SS")


def test_numbers_that_no_ct_has_are_refused_where_they_are_many(tmp_path, write_dicom, body):
    stored = body.astype(np.int32) + 1024
    stored[outside()] = 63536
    scan = write(write_dicom, tmp_path, stored, intercept=-1024, signed=False, padding=1, kind="US")
    verdict = judge_scan(scan)
    assert not verdict.accepted
    assert "of its voxels are above 4000 HU" in verdict.reason
