"""Proves that a DICOM SEG, read back, holds the same voxels in the same places; needs highdicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dagman.errors import ScanError
from dagman.scans.dicom.segments import write_segments
from dagman.scans.reading import read_scan
from dagman.scans.scan import Scan

highdicom = pytest.importorskip("highdicom")

NAMED = {
    "PatientID": "P7",
    "PatientName": "",
    "PatientBirthDate": "",
    "PatientSex": "",
    "ReferringPhysicianName": "",
    "StudyID": "1",
    "StudyDate": "",
    "StudyTime": "",
    "AccessionNumber": "",
    "SeriesNumber": 3,
    "SliceThickness": 4.0,
}
"""What an archive's series names."""


@pytest.fixture
def series(tmp_path, write_dicom) -> Path:
    """An oblique series of 24 x 20 voxels and 6 slices; the files' names say nothing of their order."""
    tilt = np.radians(20)
    matrix = np.eye(4)
    matrix[:3, :3] = [[-1, 0, 0], [0, -np.cos(tilt), np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]] * np.array([1.25, 1.5, 4.0])
    matrix[:3, 3] = (10, -5, 100)
    hu = np.arange(480).reshape(20, 24).T[:, :, None] + 100 * np.arange(6) - 1024
    write_dicom(tmp_path / "series", hu, matrix, FrameOfReferenceUID=generate_uid(), **NAMED)
    return tmp_path / "series"


def read_back(path: Path, scan: Scan, number: int) -> np.ndarray:
    """A segment on the grid of the scan: each frame is placed by its own position, by pydicom alone."""
    data = pydicom.dcmread(path)
    voxels = np.zeros(scan.shape, dtype=bool)
    for frame, pixels in zip(data.PerFrameFunctionalGroupsSequence, data.pixel_array, strict=True):
        # With one segment it is said once, for all frames.
        said = frame.get("SegmentIdentificationSequence") or data.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence
        if said[0].ReferencedSegmentNumber != number:
            continue
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float) * (-1, -1, 1)
        x, y, z = np.rint(scan.affine.to_voxel([position])[0]).astype(int)
        assert (x, y) == (0, 0)
        voxels[:, :, z] = pixels.T > 0
    return voxels


def test_a_segmentation_read_back_is_the_same_in_the_same_place(series, tmp_path):
    scan = read_scan(series)
    labels = np.zeros(scan.shape, dtype=np.uint8)
    labels[3:9, 4:7, 1:3] = 5
    labels[15:20, 10:18, 2:6] = 2
    path = tmp_path / "labels.dcm"
    write_segments(path, labels, {5: "liver", 2: "spleen"}, tuple(series.iterdir()))
    data = pydicom.dcmread(path)
    assert data.Modality == "SEG"
    assert [segment.SegmentLabel for segment in data.SegmentSequence] == ["spleen", "liver"]
    np.testing.assert_array_equal(read_back(path, scan, 1), labels == 2)
    np.testing.assert_array_equal(read_back(path, scan, 2), labels == 5)
    source = pydicom.dcmread(next(series.iterdir()))
    assert (data.StudyInstanceUID, data.PatientID) == (source.StudyInstanceUID, "P7")
    assert data.FrameOfReferenceUID == source.FrameOfReferenceUID
    # What a viewer goes by: the slices it was made from.
    volume = highdicom.seg.segread(path)
    named = {str(uid) for *_, uid in volume.get_source_image_uids()}
    assert named <= {str(pydicom.dcmread(file).SOPInstanceUID) for file in series.iterdir()}


def test_a_structure_that_is_nowhere_is_a_segment_all_the_same(series, tmp_path):
    scan = read_scan(series)
    write_segments(tmp_path / "empty.dcm", np.zeros(scan.shape, np.uint8), {1: "tumour"}, tuple(series.iterdir()))
    data = pydicom.dcmread(tmp_path / "empty.dcm")
    assert [segment.SegmentLabel for segment in data.SegmentSequence] == ["tumour"]
    assert not data.pixel_array.any()


def test_a_thoroughly_anonymised_series_is_segmented_too(series, tmp_path):
    removed = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime")
    removed += ("AccessionNumber", "ReferringPhysicianName", "SliceThickness")
    for path in series.iterdir():
        data = pydicom.dcmread(path)
        for keyword in removed:
            delattr(data, keyword)
        data.save_as(path, enforce_file_format=True)
    scan = read_scan(series)
    labels = np.zeros(scan.shape, np.uint8)
    labels[3:9, 4:8, 1:4] = 1
    write_segments(tmp_path / "seg.dcm", labels, {1: "tumour"}, tuple(series.iterdir()))
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    assert data.PatientID == data.PatientName == ""
    assert data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == pytest.approx(4.0)
    np.testing.assert_array_equal(read_back(tmp_path / "seg.dcm", scan, 1), labels == 1)


def test_labels_of_another_number_of_slices_are_refused(series, tmp_path):
    with pytest.raises(ScanError, match="labels have 5 slices, the series 6"):
        write_segments(tmp_path / "x.dcm", np.zeros((24, 20, 5), np.uint8), {1: "a"}, tuple(series.iterdir()))
    assert not (tmp_path / "x.dcm").exists()


def test_a_real_series_is_segmented_in_place(shared_data, tmp_path):
    scan = read_scan(shared_data / "chest-dicom")
    labels = (scan.voxels > 200).astype(np.uint8)
    labels[:, :, ::3] = 0
    write_segments(tmp_path / "bone.dcm", labels, {1: "bone"}, tuple((shared_data / "chest-dicom").rglob("*.dcm")))
    np.testing.assert_array_equal(read_back(tmp_path / "bone.dcm", scan, 1), labels == 1)
