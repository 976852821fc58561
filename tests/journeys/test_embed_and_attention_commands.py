"""Proves that `dagman embed` and `dagman attention` work on files, tables and stores, and refuse in one line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dagman.cli import application
from dagman.encoder.feature_file import read_features
from dagman.scans.phantom import Cohort, write_cohort
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=2, spacing=8.0)


@pytest.fixture(scope="module")
def encoder_folder(make_tiny_encoder: Callable[..., Path]) -> Path:
    return make_tiny_encoder(spacing=8.0, step=3)


def test_a_table_is_embedded(run_dagman, encoder_folder: Path, cohort: Cohort, tmp_path: Path):
    out = tmp_path / "nodules.parquet"
    run = run_dagman(
        "embed", encoder_folder, cohort.nodules_table, "--out", out, "--crop-spacing", 2, "--stages", "1,2", "--pools", "mean"
    )
    assert run.returncode == 0, run.stderr
    features = read_features(out)
    rows = cohort.nodules_table.read_text().strip().splitlines()[1:]
    refused = list(csv.reader(Path(f"{out}.rejected.csv").read_text(encoding="utf-8").splitlines()))[1:]
    assert len(features.values) + len(refused) == len(rows)
    assert features.values.shape[1] == 16 + 32
    assert features.provenance["settings"]["crop_spacing_mm"] == 2.0
    assert f"{len(features.values)} items embedded, 48 features each; {len(refused)} refused" in run.stdout
    assert str(out) in run.stdout
    assert json.loads((next(tmp_path.glob("*.parquet.command.json"))).read_text())["command"] == "embed"


def test_files_and_their_store_give_the_same_numbers(run_dagman, encoder_folder: Path, cohort: Cohort, tmp_path: Path):
    prepare_store([cohort.scans], tmp_path / "store", Preparation(spacing=8.0), workers=1)
    (tmp_path / "scans").mkdir()
    for path in cohort.scans.iterdir():
        (tmp_path / "scans" / path.name).symlink_to(path)
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no image")
    found = []
    for source, name in ((tmp_path / "store", "s.parquet"), (tmp_path / "scans", "f.parquet")):
        run = run_dagman("embed", encoder_folder, source, "--out", tmp_path / name, "--json")
        assert run.returncode == 0, run.stderr
        outcome = json.loads(run.stdout)
        assert outcome["written"] == 2
        assert [Path(one["source"]).name for one in outcome["refusals"]] == (["broken.nii.gz"] if name == "f.parquet" else [])
        assert sum("file names are kept" in note for note in outcome["notes"]) == (name == "f.parquet")
        features = read_features(tmp_path / name)
        assert all(patient.startswith("P-") for patient in features.items["patient"])
        found.append(dict(zip(features.items["content_hash"], features.values, strict=True)))
    assert found[0].keys() == found[1].keys()
    for content, values in found[0].items():
        np.testing.assert_array_equal(found[1][content], values)


def test_attention_is_written_on_the_scan_s_own_grid(run_dagman, encoder_folder: Path, cohort: Cohort, tmp_path: Path):
    scan = sorted(cohort.scans.iterdir())[0]
    run = run_dagman("attention", encoder_folder, scan, "--out", tmp_path / "out", "--json")
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert outcome["range"].endswith("of uniform")
    for name in outcome["maps"]:
        image = nib.load(tmp_path / "out" / name)
        assert image.shape == nib.load(scan).shape
        np.testing.assert_allclose(image.affine, nib.load(scan).affine, atol=1e-4)
    assert all((tmp_path / "out" / name).stat().st_size > 10_000 for name in outcome["pictures"])
    assert (tmp_path / "out" / "command.json").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("embed", "scratch:tinny", ".", "--out", "f.parquet"), "scratch:tinny: unknown size preset 'tinny'. Nearest: tiny."),
        (
            ("embed", "scratch:tiny", "x", "--out", "f.npy"),
            "f.npy: the output file must be Parquet or CSV. Give --out a name that ends in .parquet or .csv.",
        ),
        (("embed", "scratch:tiny", ".", "--out", "f.parquet", "--stages", "1,5"), "there is no stage 5. Choose among 1, 2, 3, 4."),
        (("attention", "scratch:tiny", "absent.nii.gz", "--out", "o"), "absent.nii.gz"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # In this process: what a subprocess would add is the import of torch, four times.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dagman", *arguments])
    with pytest.raises(SystemExit) as stop:
        application.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("dagman: ")
    assert text in line
    assert list(tmp_path.iterdir()) == []


def test_embedding_nothing_is_an_error_that_spares_what_was_there(run_dagman, encoder_folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    (tmp_path / "f.parquet").write_bytes(b"earlier")
    for source in ("empty", "broken.nii.gz"):
        run = run_dagman("embed", encoder_folder, tmp_path / source, "--out", tmp_path / "f.parquet")
        assert run.returncode == 2
        assert len(run.stderr.strip().splitlines()) == 1
        assert "to embed" in run.stderr or "can be embedded" in run.stderr or "contains no scans" in run.stderr
    assert (tmp_path / "f.parquet").read_bytes() == b"earlier"
