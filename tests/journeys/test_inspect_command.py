"""`dagman inspect` as a user runs it: a verdict for all that was found, files that stay, and exit codes that scripts can use."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

pytestmark = pytest.mark.journey


def write(path: Path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 2, 1])), path)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    ct = rng.normal(-900, 30, (20, 18, 12)).astype(np.int16)
    ct[5:15, 5:13, :] = 40
    for index in range(9):
        write(folder / f"p{index}" / "ct.nii.gz", ct + np.int16(index))
    write(folder / "mr[1].nii.gz", rng.normal(300, 80, (20, 18, 12)).clip(0).astype(np.int16))
    (folder / "broken.nii.gz").write_bytes(b"no image")
    return folder


def test_every_series_gets_a_verdict_and_the_files_are_written(run_dagman, scans, tmp_path):
    done = run_dagman("inspect", scans, "--out", tmp_path / "out", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "9 series of 9 patients can be used; 2 refused." in done.stdout
    assert "mr[1].nii.gz" in done.stdout
    assert "is not a NIfTI file" in done.stdout
    kept = "Names of files and folders are kept in inspect.csv and inspect.html: they may name patients."
    assert done.stdout.count(kept) == 1
    assert kept in (tmp_path / "out" / "inspect.html").read_text()
    with open(tmp_path / "out" / "inspect.csv", newline="") as file:
        rows = {Path(row["source"]).name: row for row in csv.DictReader(file)}
    assert rows["mr[1].nii.gz"]["verdict"] == "refused"
    assert "pass --modality mr if it is MR" in rows["mr[1].nii.gz"]["reason"]
    assert rows["ct.nii.gz"]["spacing_mm"] == "1 x 1 x 2"
    page = (tmp_path / "out" / "inspect.html").read_text()
    assert page.count("data:image/png;base64,") == 9
    assert "://" not in page
    outcome = json.loads((tmp_path / "out" / "command.json").read_text())["outcome"]
    assert outcome == {"accepted": 9, "refused": 2, "patients": 9, "patients_assumed": 9}


def test_json_holds_all_and_a_word_on_the_modality_counts(run_dagman, scans):
    done = run_dagman("inspect", scans / "mr[1].nii.gz", "--json", "--modality", "mr")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["series"]
    assert (row["modality"], row["accepted"], row["size"], row["axes"]) == ("MR", True, [20, 18, 12], "RAS")


def test_the_exit_code_is_2_when_nothing_can_be_used(run_dagman, scans, tmp_path):
    refused = run_dagman("inspect", scans / "broken.nii.gz")
    assert refused.returncode == 2
    assert "no series can be used; 1 refused." in refused.stdout
    empty = run_dagman("inspect", tmp_path)
    assert empty.returncode == 2
    assert empty.stderr == f"dagman: {tmp_path}: contains no scans. Give files or folders with NIfTI, NRRD, MetaImage or DICOM.\n"
