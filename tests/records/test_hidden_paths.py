"""Proves that what is kept of a command line names neither scans nor the folders they lie in."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagman.records.key import use_key
from dagman.records.provenance import hide_path
from dagman.records.sources import describe_names, name_relative


@pytest.mark.parametrize("text", ["prepare", "--out", "--steps=3", "-h", "train.steps=4", "scratch:tiny", ""])
def test_what_is_no_path_stays(text):
    assert hide_path(text) == text


@pytest.mark.parametrize(
    "text", ["/data/Quillfeather/ct.nii.gz", "Quillfeather/*.nii.gz", "Quillfeather#1.2.3", "--scans=/data/Quillfeather"]
)
def test_scans_are_named_by_the_key_and_without_one_not_at_all(text):
    assert "Quillfeather" not in hide_path(text)
    assert hide_path(text) == hide_path(text) != hide_path(text.replace("Quillfeather", "Brandywine"))
    with use_key(None):
        assert hide_path(text).endswith("scans")


def test_tables_and_dagmans_own_folders_keep_their_names_and_lose_their_places(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text("{}")
    assert hide_path(str(tmp_path / "store")) == "store"
    assert hide_path(str(tmp_path / "table.csv")) == "table.csv"


def test_found_scans_are_named_relative_to_what_was_given(tmp_path):
    names = [str(tmp_path / "a" / "ct.nii.gz"), str(tmp_path / "b" / "ct.nii.gz")]
    assert name_relative(names, [tmp_path]) == ["a/ct.nii.gz", "b/ct.nii.gz"]
    assert name_relative(names, [Path(name) for name in names]) == ["a/ct.nii.gz", "b/ct.nii.gz"]
    assert name_relative([names[0]], [Path(names[0])]) == ["ct.nii.gz"]
    assert name_relative([str(tmp_path)], [tmp_path]) == [tmp_path.name]
    assert name_relative([f"{tmp_path}#1.2"], [tmp_path]) == [f"{tmp_path.name}#1.2"]


def test_what_is_kept_of_names_is_said_and_whether_a_key_hides_the_patients():
    assert describe_names().startswith("file names are kept")
    assert "no key" not in describe_names()
    with use_key(None):
        assert "there is no key yet (dagman prepare creates one)" in describe_names()
