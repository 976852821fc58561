"""Proves that a DICOM SEG, read back, holds the same voxels in the same places; needs highdicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dagman.errors import ScanError
from dagman.scans.dicom.derived import names_its_patient, write_segments
from dagman.scans.label_files import describe_identity, renew_dicom_labels, write_dicom_labels, write_label_map
from dagman.scans.pseudonyms import name_patient
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
    assert (data.StudyInstanceUID, data.PatientID) == (source.StudyInstanceUID, name_patient("P7"))
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
    assert data.PatientID == data.PatientName == name_patient(data.StudyInstanceUID)
    assert data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == pytest.approx(4.0)
    np.testing.assert_array_equal(read_back(tmp_path / "seg.dcm", scan, 1), labels == 1)


def _identify(series: Path) -> list[str]:
    """Write what names a person, place or day into every slice; returns it."""
    planted = {
        "PatientName": "Quillfeather^Ada",
        "PatientID": "MRN-7734201",
        "OtherPatientIDs": "OTHER-55120",
        "PatientComments": "Neighbour of Dr. Vossberg",
        "PatientBirthDate": "19310217",
        "PatientAddress": "Rue Mouffetard 12",
        "AdditionalPatientHistory": "zither player",
        "Occupation": "glassblower",
        "AccessionNumber": "ACC-99117",
        "StudyID": "STUDY-4410",
        "StudyDescription": "Staging of Quillfeather",
        "StudyDate": "20190823",
        "ReferringPhysicianName": "Brandywine^Otto",
        "InstitutionName": "Saint Oakley Hospital",
        "PositionReferenceIndicator": "PosRef-Ada",
        "PatientSex": "F",
    }
    for path in series.iterdir():
        data = pydicom.dcmread(path)
        for keyword, value in planted.items():
            setattr(data, keyword, value)
        block = data.private_block(0x0011, "SECRET CREATOR", create=True)
        block.add_new(0x01, "LO", "private Quillfeather")
        data.save_as(path, enforce_file_format=True)
    return [value for value in planted.values() if len(value) > 1] + ["Quillfeather", "SECRET CREATOR"]


def test_a_segmentation_names_no_one_and_an_archive_can_join_it_all_the_same(series, tmp_path):
    planted = _identify(series)
    labels = np.zeros(read_scan(series).shape, np.uint8)
    labels[3:9, 4:8, 1:4] = 1
    write_segments(tmp_path / "seg.dcm", labels, {1: "tumour"}, tuple(series.iterdir()))
    written, data = (tmp_path / "seg.dcm").read_bytes(), pydicom.dcmread(tmp_path / "seg.dcm")
    assert [value for value in planted if value.encode() in written] == []
    assert data.PatientID == str(data.PatientName) == name_patient("MRN-7734201")
    assert (data.PatientIdentityRemoved, data.PatientSex, data.StudyDate) == ("YES", "", "")
    source = pydicom.dcmread(next(series.iterdir()))
    assert data.StudyInstanceUID == source.StudyInstanceUID
    assert data.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert not names_its_patient(tmp_path / "seg.dcm")


def test_an_identified_segmentation_is_named_as_its_source(series, tmp_path):
    _identify(series)
    labels = np.zeros(read_scan(series).shape, np.uint8)
    write_segments(tmp_path / "seg.dcm", labels, {1: "tumour"}, tuple(series.iterdir()), identified=True)
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (data.PatientID, data.AccessionNumber, data.PatientBirthDate) == ("MRN-7734201", "ACC-99117", "19310217")
    assert names_its_patient(tmp_path / "seg.dcm")


def test_a_repeat_with_another_wish_writes_the_segmentation_anew_from_its_label_map(series, tmp_path):
    _identify(series)
    scan = read_scan(series)
    labels = np.zeros(scan.shape, np.uint8)
    labels[3:9, 4:8, 1:4] = 1
    path = tmp_path / "seg.dcm"
    write_label_map(tmp_path / "seg.nii.gz", labels, scan)
    for identified in (True, False, True):
        if not path.exists():
            assert write_dicom_labels(path, labels, {1: "tumour"}, series, identified=identified) == ""
        assert renew_dicom_labels(path, {1: "tumour"}, series, identified=identified) == ""
        assert names_its_patient(path) == identified
        np.testing.assert_array_equal(read_back(path, scan, 1), labels == 1)
    assert "as requested" in describe_identity(tmp_path, identified=True)


def test_an_enhanced_series_is_segmented_without_its_names(series, tmp_path):
    slices = [pydicom.dcmread(path) for path in series.iterdir()]
    enhanced = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        slices,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
    )
    enhanced.PatientID, enhanced.PatientComments = "MRN-7734201", "Quillfeather"
    (tmp_path / "enhanced").mkdir()
    enhanced.save_as(tmp_path / "enhanced" / "all.dcm")
    scan = read_scan(tmp_path / "enhanced")
    labels = np.zeros(scan.shape, np.uint8)
    labels[3:9, 4:8, 1:4] = 1
    write_segments(tmp_path / "seg.dcm", labels, {1: "tumour"}, [tmp_path / "enhanced" / "all.dcm"])
    written = (tmp_path / "seg.dcm").read_bytes()
    assert b"7734201" not in written
    assert b"Quillfeather" not in written
    np.testing.assert_array_equal(read_back(tmp_path / "seg.dcm", scan, 1), labels == 1)


def test_labels_of_another_number_of_slices_are_refused(series, tmp_path):
    with pytest.raises(ScanError, match="a DICOM SEG would have 5 slices, but the series has 6"):
        write_segments(tmp_path / "x.dcm", np.zeros((24, 20, 5), np.uint8), {1: "a"}, tuple(series.iterdir()))
    assert not (tmp_path / "x.dcm").exists()


def test_a_real_series_is_segmented_in_place(shared_data, tmp_path):
    scan = read_scan(shared_data / "chest-dicom")
    labels = (scan.voxels > 200).astype(np.uint8)
    labels[:, :, ::3] = 0
    write_segments(tmp_path / "bone.dcm", labels, {1: "bone"}, tuple((shared_data / "chest-dicom").rglob("*.dcm")))
    np.testing.assert_array_equal(read_back(tmp_path / "bone.dcm", scan, 1), labels == 1)
