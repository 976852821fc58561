"""Proves whose scans are whose: by a table, by a pattern, or assumed and counted; a statement that leaves a scan out is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dagman.errors import DagmanError, SettingsError, TableError
from dagman.records.key import Key, make_key, use_key
from dagman.scans.discovery import find_series
from dagman.scans.pseudonyms import name_patient
from dagman.tables.patients import note_assumed, state_patients
from dagman.testing import write_dicom_series, write_nifti


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions of one patient and one of another, as files; headers alone are read."""
    folder = tmp_path_factory.mktemp("scans")
    for name in ("sub-01_ses-1.nii.gz", "sub-01_ses-2.nii.gz", "other/sub-02_ses-1.nii.gz"):
        write_nifti(folder / name, np.zeros((4, 4, 4), dtype=np.int16))
    return folder


def _state(scans: Path, stated: str | Path | None, key: Key | None = None) -> dict[str, str | None]:
    with use_key(key):
        return {Path(one.source).name: one.patient for one in state_patients(find_series(scans), stated).series}


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_statement_every_file_is_assumed_to_be_a_patient(scans):
    found = state_patients(find_series(scans), None)
    assert [one.patient_assumed for one in found.series] == [True] * 3
    (note,) = note_assumed(3, 4)
    assert note.startswith("no patient is stated for 3 of 4 scans: each was treated as a separate patient")
    assert note_assumed(0, 4) == []


def test_a_pattern_names_patients_by_its_group_in_the_name_or_the_path(scans):
    assert set(_state(scans, "(sub-[0-9]+)").values()) == {"sub-01", "sub-02"}
    assert _state(scans, "(other|scans)[^/]*/[^/]*$")["sub-02_ses-1.nii.gz"] == "other"
    stated = state_patients(find_series(scans), "(sub-[0-9]+)")
    assert not any(one.patient_assumed for one in stated.series)


def test_a_table_names_patients_by_file_name_stem_or_path(scans, tmp_path):
    lines = ["scan,patient", "sub-01_ses-1.nii.gz,A", "sub-01_ses-2,A", f"{scans / 'other' / 'sub-02_ses-1.nii.gz'},B"]
    table = _write(tmp_path / "patients.csv", "\n".join(lines))
    assert sorted(map(str, _state(scans, table).values())) == ["A", "A", "B"]


def test_patients_go_through_the_key(scans, tmp_path):
    key = make_key(tmp_path / "pseudonyms.key")
    with use_key(key):
        assert set(_state(scans, "(sub-[0-9]+)", key).values()) == {name_patient("sub-01"), name_patient("sub-02")}


def test_a_dicom_series_keeps_its_patient_unless_the_user_states_another(tmp_path):
    write_dicom_series(tmp_path / "scans" / "one", np.zeros((8, 8, 3), dtype=np.int16), np.eye(4))
    write_dicom_series(tmp_path / "scans" / "nameless", np.zeros((8, 8, 3), dtype=np.int16), np.eye(4), PatientID="")
    found = find_series(tmp_path / "scans").series
    assert {Path(one.source).name: one.patient_from for one in found} == {"one": "file", "nameless": "assumed"}
    stated = {Path(one.source).name: one for one in state_patients(find_series(tmp_path / "scans"), "(nameless)").series}
    assert {name: one.patient_from for name, one in stated.items()} == {"one": "file", "nameless": "user"}


@pytest.mark.parametrize(
    ("stated", "kind", "text"),
    [
        ("sub-[0-9]+", SettingsError, "has no group, not one"),
        ("(sub)-([0-9]+)", SettingsError, "has 2 groups, not one"),
        ("(sub-[0-9]+", SettingsError, "is not a regular expression"),
        ("(sub-01)", SettingsError, "1 scan is not assigned to a patient: sub-02_ses-1.nii.gz"),
        ("absent.csv", TableError, "does not exist"),
    ],
)
def test_a_wrong_pattern_is_refused_before_work_begins(scans, stated, kind, text):
    with pytest.raises(kind) as caught:
        _state(scans, stated)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("scan,patient\nsub-01_ses-1,A", "2 scans are not assigned to a patient"),
        ("scan,patients\nsub-01_ses-1,A", "has no column 'patient'. Nearest: patients"),
        ("scan,patient\nsub-01_ses-1,A\nsub-01_ses-1,B", "a scan has two patients in row 2"),
        ("scan,patient\nsub-01_ses-1,", "a scan or its patient is missing in row 1"),
    ],
)
def test_a_wrong_table_is_refused_before_work_begins(scans, tmp_path, lines, text):
    with pytest.raises(DagmanError) as caught:
        _state(scans, _write(tmp_path / "patients.csv", lines))
    assert text in str(caught.value)


def test_a_bare_name_that_two_scans_have_is_refused(tmp_path):
    for folder in ("a", "b"):
        write_nifti(tmp_path / folder / "ct.nii.gz", np.zeros((4, 4, 4), dtype=np.int16))
    table = _write(tmp_path / "patients.csv", "scan,patient\nct.nii.gz,A")
    with pytest.raises(TableError, match="2 scans have that name"):
        _state(tmp_path, table)
    table = _write(tmp_path / "patients.csv", "scan,patient\na/ct.nii.gz,A\nb/ct.nii.gz,B")
    with use_key(None):
        assert {one.patient for one in state_patients(find_series(tmp_path), table).series} == {"A", "B"}
