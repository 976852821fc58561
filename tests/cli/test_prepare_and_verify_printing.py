"""Proves that what `dagman prepare` and `dagman store verify` print is what a user needs: counts, reasons, places, units."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from dagman.cli import progress
from dagman.cli.scans import prepare, store
from dagman.records.csv_file import read_csv


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    voxels = np.full((24, 24, 12), -1000, np.int16)
    voxels[6:18, 6:18] = 40
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1.0])), folder / "good.nii.gz")
    for number in range(12):
        (folder / f"bad{number:02}.nii.gz").write_bytes(b"")
    return folder


def test_counts_reasons_and_the_place_are_printed(scans, tmp_path):
    out = tmp_path / "store"
    done = CliRunner().invoke(prepare.app, [str(scans), "--out", str(out), "--workers", "1"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "1 series to prepare: about" in text
    assert "with 1 process;" in text
    assert "1 kept, 12 rejected, in" in text
    assert f"and 2 more in {out / 'rejected.csv'}" in text
    assert f"Store: {out} (" in text
    again = CliRunner().invoke(prepare.app, [str(scans), "--out", str(out), "--workers", "1"])
    assert again.output.startswith(
        "Nothing to prepare: all series are already in the store.\n1 kept (1 were already there), 12 rejected"
    )
    assert "about" not in again.output


def test_where_no_series_can_be_used_nothing_is_said_to_be_there(scans, tmp_path):
    refused = CliRunner().invoke(prepare.app, [str(scans / "bad00.nii.gz"), "--out", str(tmp_path / "store"), "--workers", "1"])
    assert refused.output.startswith("Nothing to prepare: no series is usable.\n")
    assert "the only series was rejected" in str(refused.exception)


def test_a_path_with_square_brackets_is_printed_as_it_is(scans, tmp_path):
    folder = tmp_path / "[bold] scans"
    (folder / "[").mkdir(parents=True)
    (folder / "good.nii.gz").write_bytes((scans / "good.nii.gz").read_bytes())
    (folder / "[" / "x].nii.gz").write_bytes(b"")
    (folder / "[red]bad.nii.gz").write_bytes(b"")
    out = tmp_path / "[dim] store"
    done = CliRunner().invoke(prepare.app, [str(folder), "--out", str(out), "--workers", "1"])
    assert done.exit_code == 0, done.exception
    assert f"  {folder / '[red]bad.nii.gz'}: is empty" in done.output
    # The folder "[" makes "[/x]" of the path, which rich takes for a closing tag without an opening one.
    assert f"  {folder / '[' / 'x].nii.gz'}: is empty" in done.output
    assert f"Store: {out} (" in done.output


def test_findings_are_printed_and_make_the_exit_code(scans, tmp_path):
    out = tmp_path / "store"
    CliRunner().invoke(prepare.app, [str(scans), "--out", str(out), "--workers", "1", "--json"])
    whole = CliRunner().invoke(store.app, ["verify", str(out)])
    assert (whole.exit_code, whole.output) == (0, "1 scan, all intact.\n")
    (path,) = out.rglob("*.b2nd")
    path.unlink()
    found = CliRunner().invoke(store.app, ["verify", str(out)])
    assert found.exit_code == 1
    assert f"{path.relative_to(out)}: is missing" in found.output
    listed = json.loads(CliRunner().invoke(store.app, ["verify", str(out), "--json"]).output)
    assert listed["findings"] == [{"file": str(path.relative_to(out)), "problem": "is missing"}]


@pytest.mark.parametrize(("count", "text"), [(5, "5 B"), (1234, "1.23 kB"), (98_700_000, "98.7 MB"), (3e12, "3 TB")])
def test_sizes_are_printed_with_their_unit(count, text):
    assert progress.describe_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (59.6, "60 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_are_printed_with_their_unit(seconds, text):
    assert progress.describe_seconds(seconds) == text


def test_a_store_is_listed_and_a_patient_taken_out_of_it(scans, tmp_path):
    out = tmp_path / "store"
    CliRunner().invoke(prepare.app, [str(scans), "--out", str(out), "--workers", "1"])
    listed = CliRunner().invoke(store.app, ["list", str(out)])
    header, row, total, assumed = listed.output.splitlines()
    assert assumed.startswith("no patient is stated for 1 of 1 scan")
    assert header.split() == ["id", "patient", "modality", "voxels", "MB"]
    scan_id, patient, modality, *_ = row.split()
    assert (len(scan_id), patient[:2], modality) == (16, "P-", "CT")
    assert total.startswith("1 scan of 1 patient, ")
    (values,) = json.loads(CliRunner().invoke(store.app, ["list", str(out), "--json"]).output)["scans"]
    assert (values["id"], values["patient"]) == (scan_id, patient)

    asked = ["list", str(out), "--patient", patient, "--modality", "ct", "--csv", str(tmp_path / "scans.csv")]
    assert "written to" in CliRunner().invoke(store.app, asked).output
    (row,) = read_csv(tmp_path / "scans.csv")
    assert (row["id"], row["modality"], row["shape"]) == (scan_id, "CT", "x".join(map(str, values["shape"])))
    for option, wrong in (("--patient", "P-0"), ("--modality", "mr")):
        refused = CliRunner().invoke(store.app, ["list", str(out), option, wrong])
        assert f"holds no scans of {option[2:]} '{wrong}'" in str(refused.exception)

    unknown = CliRunner().invoke(store.app, ["remove", str(out), "nobody"])
    assert "contains no scan or patient 'nobody'" in str(unknown.exception)
    removed = CliRunner().invoke(store.app, ["remove", str(out), "good"])
    assert removed.output.startswith("1 scan of 1 patient removed; 0 scans are left.\nDelete the source files as well")
    assert "holds no scans" in str(CliRunner().invoke(store.app, ["list", str(out)]).exception)


def test_a_changed_and_a_vanished_source_are_told_at_the_end(tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "store"
    folder.mkdir()
    for name, size in (("a", 8), ("b", 10)):
        voxels = np.full((24, 24, 12), -1000, np.int16)
        voxels[4 : 4 + size, 6:18] = 40
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1.0])), folder / f"{name}.nii.gz")
    CliRunner().invoke(prepare.app, [str(folder), "--out", str(out), "--workers", "1"])
    (folder / "a.nii.gz").unlink()
    voxels[12:20] = 40
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1.0])), folder / "b.nii.gz")
    text = " ".join(CliRunner().invoke(prepare.app, [str(folder), "--out", str(out), "--workers", "1"]).output.split())
    assert f"1 scan was replaced, as the files have changed since: {folder / 'b.nii.gz'}" in text
    assert "1 scan is kept whose files are no longer below the given paths, or no longer usable:" in text
    assert f"to remove them: dagman store remove {out} ID" in text
