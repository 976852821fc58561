"""Patients get names that are not theirs: one a PatientID, and by the stated rule for files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dagman.records.key import Key, use_key
from dagman.scans.pseudonyms import name_file, name_patient, name_patients


def test_a_patient_id_gives_one_short_name_that_does_not_hold_it():
    assert name_patient("MRN-4711") == name_patient(" MRN-4711 ")
    assert name_patient("MRN-4711") != name_patient("MRN-4712")
    assert name_patient("MRN-4711").startswith("P-")
    assert len(name_patient("MRN-4711")) == 2 + 64 // 4
    assert "4711" not in name_patient("MRN-4711")


def test_another_key_gives_other_names_and_a_list_of_candidates_is_of_no_use_without_it():
    with use_key(Key(bytes(32))):
        one = name_patient("MRN-4711")
    with use_key(Key(bytes([1]) * 32)):
        assert name_patient("MRN-4711") != one
        assert one not in {name_patient(f"MRN-{number}") for number in range(4000, 5000)}


def test_without_a_key_names_are_as_they_were_before_there_were_keys():
    with use_key(None):
        assert (
            name_patient("MRN-4711")
            == "P-" + hashlib.blake2b(b"MRN-4711", key=b"dagman patient pseudonym 1", digest_size=4).hexdigest()
        )


def test_names_of_files_go_through_the_key_like_patient_ids():
    assert name_patients([Path("x/Quillfeather.nii.gz")]) == [name_patient("Quillfeather")]


@pytest.mark.parametrize(
    ("name", "stem"), [("a/case_1.nii.gz", "case_1"), ("b.nrrd", "b"), ("v1.2.nii", "v1.2"), ("a.nii.GZ", "a")]
)
def test_a_file_is_named_without_its_suffixes(name, stem):
    assert name_file(Path(name)) == stem


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/1.nii", "y/2.nii"], ["1", "2"]),
        (["x/ct.nii.gz", "y/ct.nii.gz"], ["x", "y"]),
        (["x/ct.nii.gz", "x/mr.nii.gz", "y/ct.nii.gz", "y/mr.nii.gz"], ["x", "x", "y", "y"]),
        (["a/1.nii", "a/2.nii", "a/3.nii", "b/1.nii"], ["a/1", "a/2", "a/3", "b/1"]),
        (["1.nii", "b/1.nii"], ["1", "b/1"]),
        ([], []),
    ],
)
def test_two_files_of_one_name_are_told_apart(paths, names):
    with use_key(None):
        assert name_patients([Path(path) for path in paths]) == names
    assert name_patients([Path(path) for path in paths]) == [name_patient(name) for name in names]
