"""Proves what a preparation remarks on: scans too small for a view, by file name; mixed modalities; patients, stated or assumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dagman.store.manifest import Store
from dagman.store.upkeep.remarks import remark_on_scans
from dagman.store.writer import prepare_store
from dagman.testing import make_body, write_nifti


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At 2 mm: one scan that every view fits, one that the smallest alone fits, one that none does."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, (name, shape) in enumerate({"p1-large": (84, 84, 84), "p1-flat": (64, 64, 40), "p2-thin": (64, 64, 14)}.items()):
        write_nifti(folder / f"{name}.nii.gz", make_body(shape, seed), 2.0)
    return folder


def test_small_scans_and_assumed_patients_are_named_at_prepare(scans, tmp_path):
    notes = prepare_store(scans, tmp_path / "store", workers=1).notes
    (assumed,) = (note for note in notes if "separate patient" in note)
    assert assumed.startswith("no patient is stated for 3 of 3 scans")
    small = [note for note in notes if "too small" in note]
    assert [note.split(",")[0] for note in small] == [
        "1 scan is too small for a view of 64 voxels at 2 mm",
        "1 scan is too small for a view of 96 voxels at 2 mm",
    ]
    shapes = {row.shape[2]: row.shape for row in Store(tmp_path / "store").rows}
    assert small[0].endswith(f"p2-thin.nii.gz ({' x '.join(map(str, shapes[14]))} voxels)")
    assert "p1-flat.nii.gz" in small[1]
    assert not any("p1-large" in note for note in small)


def test_patients_stated_later_replace_those_assumed_and_stay(scans, tmp_path):
    out = tmp_path / "store"
    prepare_store(scans / "p1-large.nii.gz", out, workers=1)
    first = Store(out).rows[0]
    again = prepare_store(scans, out, workers=1, patients="(p[0-9])")
    assert not any("separate patient" in note for note in again.notes)
    patients = {row.id: row.patient for row in Store(out).rows}
    assert len(patients) == 3
    assert len(set(patients.values())) == 2
    assert patients[first.id] != first.patient
    # A later preparation that states nothing changes nothing.
    third = prepare_store(scans, out, workers=1)
    assert third.kept == third.already == 3
    assert {row.id: row.patient for row in Store(out).rows} == patients
    assert not any("separate patient" in note for note in third.notes)


def test_mr_beside_ct_is_named(scans, tmp_path):
    prepare_store(scans, tmp_path / "store", workers=1)
    first, *others = Store(tmp_path / "store").rows
    rows = {"a.nii.gz": dataclasses.replace(first, modality="MR"), "b.nii.gz": others[0], "c.nii.gz": others[1]}
    notes = remark_on_scans(rows, rows.values())
    assert notes[-1] == "the store holds 2 CT and 1 MR (MR: a.nii.gz): dagman pretrain will need --modality ct, mr or all"
    assert not any("the store holds" in note for note in remark_on_scans({"b.nii.gz": others[0]}, [others[0]]))
