"""Proves that estimating reads what the preparation reads, and says nothing of headers that are odd but readable."""

from __future__ import annotations

import os

import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dagman.scans.discovery import Series
from dagman.store.estimate import estimate_cost, measure_crowding
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store


def test_odd_headers_are_estimated_and_prepared_in_silence(nifti_of, trunk, tmp_path, capfd):
    path = nifti_of(tmp_path / "a.nii", trunk(1))
    raw = bytearray(path.read_bytes())
    raw[0:4] = bytes(4)  # sizeof_hdr, which nibabel mends aloud.
    path.write_bytes(raw)
    events = []
    assert prepare_store(path, tmp_path / "store", workers=1, on_event=events.append).kept == 1
    assert events[0].bytes > 0
    assert capfd.readouterr() == ("", "")


def test_what_pydicom_remarks_on_does_not_reach_the_user(tmp_path):
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, "1.2.3"
    data.Rows, data.Columns, data.PixelSpacing, data.SliceThickness = 64, 32, [2, 2], 3
    path = tmp_path / "a.dcm"
    data.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.(.1"))
    series = Series(kind="dicom", files=(path,) * 10, source=str(path))
    # A warning is an error here.
    estimate = estimate_cost([series], 0, tmp_path, Preparation(), 1)
    assert estimate.bytes == 64 * 32 * 10 * 2 * 2 * 3 / 8


def test_a_busy_machine_takes_as_much_longer(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    assert measure_crowding(2) == 1.0
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 0.0, 0.0))
    assert measure_crowding(2) == 2.0
