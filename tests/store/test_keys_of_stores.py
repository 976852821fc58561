"""Proves that a store goes on with the key it was begun with, and with no other; and that stores from before keys go on without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dagman.errors import StoreError
from dagman.records.key import find_key, make_key, use_key
from dagman.scans.pseudonyms import name_patient
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store

_BEFORE = Path(__file__).parents[1] / "made_before"


@pytest.fixture
def scan(tmp_path, trunk, nifti_of) -> Path:
    return nifti_of(tmp_path / "scans" / "Quillfeather.nii.gz", trunk(1))


def test_the_first_store_makes_the_key_and_says_where_it_lies(scan, tmp_path):
    place = tmp_path / "keys" / "mine.key"
    made = prepare_store(scan.parent, tmp_path / "store", key=place)
    assert made.notes[0] == f"created the key for pseudonyms {place}; keep it, and store it separately from the store"
    key = find_key(place)
    assert key is not None
    info = json.loads((tmp_path / "store" / "store.json").read_text())
    assert info["key"] == key.fingerprint
    with use_key(key):
        assert [row.patient for row in Store(tmp_path / "store").rows] == [name_patient("Quillfeather")]
    written = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert key.secret.hex().encode() not in written
    again = prepare_store(scan.parent, tmp_path / "store", key=place)
    assert not any(note.startswith("created the key for pseudonyms") for note in again.notes)


def test_another_key_is_refused_and_so_is_a_missing_one(scan, tmp_path, monkeypatch):
    prepare_store(scan.parent, tmp_path / "store", key=tmp_path / "mine.key")
    before = (tmp_path / "store" / "manifest.parquet").read_bytes()
    make_key(tmp_path / "another.key")
    with pytest.raises(StoreError, match=r"was made with the key [0-9a-f]{16}; this one is [0-9a-f]{16}"):
        prepare_store(scan.parent, tmp_path / "store", key=tmp_path / "another.key")
    monkeypatch.delenv("DAGMAN_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(StoreError, match=r"there is none here\. Give its key: --key PATH, or DAGMAN_KEY"):
        prepare_store(scan.parent, tmp_path / "store")
    assert not (tmp_path / "config").exists()
    assert (tmp_path / "store" / "manifest.parquet").read_bytes() == before


def test_a_store_from_before_keys_is_extended_without_one(tmp_path, trunk, nifti_of):
    shutil.copytree(_BEFORE / "store", tmp_path / "store")
    known = {row.patient for row in Store(tmp_path / "store").rows}
    nifti_of(tmp_path / "scans" / "later.nii.gz", trunk(2))
    spacing = Store(tmp_path / "store").preparation.spacing
    done = prepare_store(tmp_path / "scans", tmp_path / "store", Preparation(spacing=spacing), workers=1)
    assert "its pseudonyms stay unkeyed" in done.notes[0]
    assert {row.patient for row in Store(tmp_path / "store").rows} == known | {"later"}
    assert "key" not in json.loads((tmp_path / "store" / "store.json").read_text())


def test_a_store_from_before_keys_refuses_one_that_is_given(tmp_path, scan):
    shutil.copytree(_BEFORE / "store", tmp_path / "store")
    make_key(tmp_path / "mine.key")
    spacing = Store(tmp_path / "store").preparation.spacing
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=r"before keys were introduced, and cannot use one.*Omit --key, or prepare"):
        prepare_store(scan.parent, tmp_path / "store", Preparation(spacing=spacing), key=tmp_path / "mine.key")
    assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()} == before
