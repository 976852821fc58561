"""Proves that a written cohort is what a user would bring: readable files in many orientations, tables that fit, same bytes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from dagman.errors import ScanError
from dagman.records.hashes import hash_file
from dagman.scans.discovery import find_series
from dagman.scans.phantom import ORGANS, Cohort, make_patient, write_cohort
from dagman.scans.reading import read_series
from dagman.scans.scan import reorient_scan
from dagman.scans.verdict import judge_scan
from dagman.tables.table import read_table


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=2, seed=5, spacing=8.0)


def _hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hash_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_bytes_depend_on_the_seed_alone(cohort, tmp_path):
    again = write_cohort(tmp_path / "again", patients=2, seed=5, spacing=8.0, workers=1)
    assert _hashes(again.folder) == _hashes(cohort.folder)


def test_a_patient_is_the_same_in_a_cohort_of_any_size(cohort, tmp_path):
    smaller = write_cohort(tmp_path / "smaller", patients=1, seed=5, spacing=8.0)
    name = "scans/phantom-000.nii.gz"
    assert hash_file(smaller.folder / name) == hash_file(cohort.folder / name)
    rows = [pd.read_csv(c.nodules_table).query("patient == 'phantom-000'").to_dict("records") for c in (smaller, cohort)]
    assert rows[0] == rows[1]


def test_our_own_reader_takes_every_scan_for_ct(cohort):
    found = find_series(cohort.scans)
    assert len(found.series) == 2
    assert found.refused == ()
    scans = [read_series(series) for series in found.series]
    assert [scan.modality for scan in scans] == ["CT"] * 2
    assert all(judge_scan(scan).accepted for scan in scans)


def test_files_differ_in_axis_order_but_hold_the_patient_that_was_made(cohort):
    scans = [read_series(series) for series in find_series(cohort.scans).series]
    assert len({scan.affine.axis_codes for scan in scans}) > 1
    for index, scan in enumerate(scans):
        patient, upright = make_patient(5, index, 8.0), reorient_scan(scan)
        assert np.array_equal(upright.voxels, patient.hu)
        np.testing.assert_allclose(upright.affine.matrix, patient.affine, atol=1e-3)


def test_masks_are_on_the_grid_of_their_scan(cohort):
    for path in sorted(cohort.scans.glob("*.nii.gz")):
        scan = nibabel.load(path)
        for name in ("organs", "nodules", "tumour"):
            mask = nibabel.load(cohort.masks / path.name.replace(".nii.gz", f"_{name}.nii.gz"))
            assert mask.shape == scan.shape
            np.testing.assert_array_equal(mask.affine, scan.affine)
            assert np.asarray(mask.dataobj).any()


def test_every_table_is_one_that_dagman_reads(cohort):
    nodules = read_table(cohort.nodules_table, label="label")
    assert set(nodules.patients) == {"phantom-000", "phantom-001"}
    assert all(item.center_mm and item.label_value and item.mask for item in nodules.items)
    organs = read_table(cohort.organs_table, label="label")
    assert len(organs.classes) >= 11
    assert {"lung_left", "lung_right", "heart", "aorta", "liver", "spleen", "kidney_left", "kidney_right"} <= set(organs.classes)
    outcome = read_table(cohort.outcome_table, time="time", event="event", clinical=["age", "grade"])
    assert len(outcome.items) == 2
    assert len(read_table(cohort.tumours_table).items) == 2
    assert dict(pd.read_csv(cohort.labels)[["name", "id"]].itertuples(index=False)) == ORGANS


def test_a_nodules_center_lies_at_its_label(cohort):
    for row in pd.read_csv(cohort.nodules_table).to_dict("records"):
        mask = nibabel.load(cohort.folder / row["mask"])
        inside = np.argwhere(np.asarray(mask.dataobj) == row["label_value"])
        center = nibabel.affines.apply_affine(mask.affine, inside.mean(0))
        np.testing.assert_allclose(center, [row[f"center_{axis}_mm"] for axis in "xyz"], atol=0.02)


@pytest.mark.parametrize(("wrong", "message"), [({"patients": 0}, "patients = 0"), ({"spacing": 0.0}, "spacing is 0.0 mm")])
def test_numbers_that_make_no_cohort_are_refused(tmp_path, wrong, message):
    with pytest.raises(ScanError, match=message):
        write_cohort(tmp_path, **wrong)
