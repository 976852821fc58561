"""Proves that a prediction goes back as DICOM SEG to the very series it was made from, and that one line says where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dagman.scans.discovery import find_series
from dagman.scans.label_files import find_dicom_files, write_dicom_labels
from dagman.scans.reading import read_scan

_SHAPE = (12, 10)


@pytest.fixture
def series(tmp_path: Path, write_dicom: Callable[..., list[Path]]) -> dict[str, list[Path]]:
    """Two series in one folder, of 4 slices and of 6."""
    return {
        name: write_dicom(
            tmp_path / "study",
            np.arange(120 * slices).reshape(*_SHAPE, slices) - 1000,
            np.diag([-5.0, -5.0, 5.0, 1.0]),
            FrameOfReferenceUID=generate_uid(),
        )
        for name, slices in (("early", 4), ("late", 6))
    }


@pytest.fixture
def folder(series: dict[str, list[Path]]) -> Path:
    """The folder of both."""
    return series["early"][0].parent


@pytest.mark.parametrize("name", ["early", "late"])
def test_in_a_folder_of_two_series_each_scan_has_its_own_files_and_its_own_segmentation(folder, series, name, tmp_path):
    pytest.importorskip("highdicom")
    (source,) = (one.source for one in find_series(folder).series if set(one.files) == set(series[name]))
    assert set(find_dicom_files(source)) == set(series[name])
    labels = np.zeros(read_scan(source).shape, np.uint8)
    labels[3:6, 2:5, 1:3] = 7
    assert write_dicom_labels(tmp_path / "out.dcm", labels, {7: "ball"}, source) == ""
    written = pydicom.dcmread(tmp_path / "out.dcm")
    images = [pydicom.dcmread(path) for path in series[name]]
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == images[0].SeriesInstanceUID
    named = {one.ReferencedSOPInstanceUID for one in written.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert named <= {image.SOPInstanceUID for image in images}
    assert written.pixel_array.sum() == (labels == 7).sum()


def test_where_the_series_cannot_be_told_one_line_says_that_nothing_was_written(folder, tmp_path):
    said = write_dicom_labels(tmp_path / "out.dcm", np.ones((*_SHAPE, 4), np.uint8), {1: "ball"}, folder)
    assert said.startswith(f"out: no DICOM SEG was written: {folder}: holds 2 series. ")
    assert "\n" not in said
    assert not (tmp_path / "out.dcm").exists()


def test_labels_that_no_longer_fit_the_series_cost_the_segmentation_alone(series, tmp_path):
    said = write_dicom_labels(tmp_path / "out.dcm", np.ones((*_SHAPE, 5), np.uint8), {1: "ball"}, series["early"][0])
    assert "no DICOM SEG was written" in said
    assert "a DICOM SEG would have 5 slices, but the series has 4" in said
    assert not (tmp_path / "out.dcm").exists()


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("identified", [False, True])
def test_headers_that_lack_what_a_segmentation_must_name_cost_the_segmentation_alone(series, tmp_path, keyword, identified):
    pytest.importorskip("highdicom")
    for path in series["early"]:
        data = pydicom.dcmread(path)
        delattr(data, keyword)
        data.save_as(path)
    labels, place = np.ones((*_SHAPE, 4), np.uint8), tmp_path / "out.dcm"
    said = write_dicom_labels(place, labels, {1: "ball"}, series["early"][0], identified=identified)
    assert said == (
        f"out: no DICOM SEG was written: {series['early'][0].parent}: its headers lack {keyword}, which a DICOM SEG must contain. "
        "Export the series again, with its UIDs kept."
    )
    assert not place.exists()


def test_a_scan_of_another_format_asks_for_no_dicom(folder, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    assert find_dicom_files(tmp_path / "scan.nii.gz") == ()
    assert write_dicom_labels(tmp_path / "out.dcm", np.ones((4, 4, 4), np.uint8), {1: "ball"}, tmp_path / "scan.nii.gz") == ""
    assert not (tmp_path / "out.dcm").exists()
