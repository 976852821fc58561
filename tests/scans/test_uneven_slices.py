"""Uneven and missing slices are interpolated up to a set gap, said, and refused above; what is linear stays as it was."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from dagman.cli.scans.inspect import inspect_scans
from dagman.cli.scans.prepare import prepare_scans
from dagman.errors import ScanError
from dagman.scans.discovery import WIDEST_GAP_MM
from dagman.scans.reading import read_scan
from dagman.scans.scan import reorient_scan


@pytest.fixture
def placement() -> np.ndarray:
    """Slices of 1.25 mm."""
    return np.array([[0.8, 0, 0, -30], [0, 0.9, 0, 12], [0, 0, 1.25, 100], [0, 0, 0, 1.0]])


@pytest.fixture
def ramp() -> np.ndarray:
    """HU that rise by 10 a slice, on a body with structure in its planes."""
    x, y, z = np.mgrid[:12, :10, :16]
    return (-900 + 60 * x + 30 * y + 10 * z).astype(np.int16)


@pytest.mark.parametrize("lost", [[5], [3, 9]])
def test_a_missing_slice_is_interpolated_and_said(tmp_path, write_dicom, ramp, placement, lost):
    write_dicom(tmp_path, ramp, placement, slices=[index for index in range(16) if index not in lost])
    scan = reorient_scan(read_scan(tmp_path))
    assert np.array_equal(scan.voxels, ramp)
    assert scan.affine.matrix == pytest.approx(placement, abs=1e-6)
    (note,) = scan.notes
    assert f"1.25 mm apart, but 2.5 mm after slice {lost[0]}" in note
    assert f"{len(lost)} {'slice is' if len(lost) == 1 else 'slices are'} missing; values between slices were interpolated" in note


def test_slices_that_are_there_keep_their_values_where_one_is_missing(tmp_path, write_dicom, ct, placement):
    write_dicom(tmp_path, ct, placement, slices=[0, 1, 2, 3, 5, 6, 7, 8])
    scan = reorient_scan(read_scan(tmp_path))
    there = [0, 1, 2, 3, 5, 6, 7, 8]
    assert np.array_equal(scan.voxels[:, :, there], ct[:, :, there])
    assert scan.voxels[:, :, 4] == pytest.approx((ct[:, :, 3].astype(float) + ct[:, :, 5]) / 2, abs=0.5)


def test_uneven_slices_keep_each_world_position(tmp_path, write_dicom, edit_dicom, ramp, placement):
    places = np.cumsum([0, *([1.0, 1.0, 1.6, 1.0, 1.0] * 3)])
    for index, path in enumerate(write_dicom(tmp_path, ramp, placement)):
        plane = np.rint(-900 + 60 * np.mgrid[:12, :10][0] + 20 * places[index]) + 1024
        edit_dicom(path, ImagePositionPatient=[30.0, -12.0, 100 + places[index]], PixelData=plane.T.astype(np.uint16).tobytes())
    scan = reorient_scan(read_scan(tmp_path))
    height = scan.affine.to_world(np.column_stack([np.zeros((scan.shape[2], 2)), np.arange(scan.shape[2])]))[:, 2] - 100
    assert height[[0, -1]] == pytest.approx([0, places[-1]])
    # Linear in z, so a tenth of a slice is 2 HU.
    assert scan.voxels[3, 4] == pytest.approx(-900 + 180 + 20 * height, abs=1.01)


@pytest.mark.parametrize("widest", [0.0, 2.4])
def test_a_wider_gap_is_refused(tmp_path, write_dicom, ramp, placement, widest):
    write_dicom(tmp_path, ramp, placement, slices=[index for index in range(16) if index != 5])
    with pytest.raises(ScanError, match=r"but 2\.5 mm after slice 5 .*1 slice is missing\. Export the complete"):
        read_scan(tmp_path, widest_gap=widest)


@pytest.mark.parametrize("command", [inspect_scans, prepare_scans])
def test_the_commands_bridge_what_reading_does(command):
    assert inspect.signature(command).parameters["widest_gap"].default == WIDEST_GAP_MM
