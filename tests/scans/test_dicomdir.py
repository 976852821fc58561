"""A DICOMDIR means the images that it lists, no more, and what is missing is named."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from dagman.scans.discovery import find_series
from dagman.scans.reading import read_scan


def _write_directory(folder: Path, files: list[tuple[str, ...]]) -> Path:
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["directory"])
    records = []
    for parts in files:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        # Without a judgement of the names: some are not allowed.
        record[0x00041500] = DataElement(0x00041500, "CS", list(parts), validation_mode=pydicom.config.IGNORE)
        records.append(record)
    other = Dataset()
    other.DirectoryRecordType = "SERIES"
    directory.DirectoryRecordSequence = Sequence([other, *records])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(folder / "DICOMDIR", directory, enforce_file_format=True)
    return folder / "DICOMDIR"


@pytest.fixture
def disc(tmp_path, write_dicom, ct, placement) -> tuple[Path, list[Path]]:
    """A disc of one series by the names of the standard, and another series that its DICOMDIR does not list."""
    (tmp_path / "IMAGES").mkdir()
    files = []
    for number, path in enumerate(write_dicom(tmp_path / "first", ct, placement)):
        files.append(path.rename(tmp_path / "IMAGES" / f"IM{number:04d}"))
    write_dicom(tmp_path / "OTHER", ct, placement, uid="1.2.826.0.1.3680043.8.498.7")
    return tmp_path, files


def test_the_images_listed_are_read_and_no_others(disc, ct):
    folder, files = disc
    given = _write_directory(folder, [("IMAGES", path.name) for path in files])
    found = find_series(given)
    assert [one.source for one in found.series] == [str(folder / "IMAGES")]
    assert found.refused == ()
    assert read_scan(given).voxels.tobytes() == read_scan(folder / "IMAGES").voxels.tobytes()
    assert len(find_series(folder).series) == 2
    for path in files:
        path.rename(path.with_name(path.name.lower()))
    assert read_scan(given).shape == ct.shape


def test_missing_files_and_names_that_lead_out_are_named(disc):
    folder, files = disc
    names = [("IMAGES", path.name) for path in files]
    given = _write_directory(folder, [*names, ("IMAGES", "IM9999"), ("..", "secret"), ("ALONE",)])
    found = find_series(given)
    assert len(found.series) == 1
    missing = "is listed in the DICOMDIR, but missing: copy the disc or export it again"
    outside = "is listed outside the folder of the DICOMDIR: give the folder that contains it"
    assert {one.source.removeprefix(f"{folder}/"): one.reason for one in found.refused} == {
        "IMAGES/IM9999": missing,
        "../secret": outside,
        "ALONE": missing,
    }


def test_a_damaged_one_is_refused_by_name(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(b"something else")
    (refusal,) = find_series(tmp_path / "DICOMDIR").refused
    assert refusal.source == str(tmp_path / "DICOMDIR")
    assert refusal.reason.startswith("is not a DICOMDIR, or is damaged")
    assert refusal.reason.endswith(": give its folder instead: all scans in it are found")
