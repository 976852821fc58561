"""Proves that what was written before is read now as it was read then: a store, a run, an encoder folder, results with their model.

`made_before/` was written on 2026-11-28, before the packages were rearranged, from two bodies at 4 mm; so were the numbers below.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dagman.cli import application
from dagman.encoder.loading import load_encoder
from dagman.evaluation.results import Results
from dagman.notes import warn
from dagman.reports.tasks.classification import render_classification
from dagman.store.manifest import Store
from dagman.store.upkeep.verification import verify_store

_MADE = Path(__file__).parent / "made_before"
FEATURES = (180.49482984095812, -108.44054696336389, 6.585941798482963, 1.116893731057644)
DIGEST = "e57ad9ab40acf3c968983c525c99ecfd"
VOXELS = {"13f4c58307ca6803": -16679980, "1c2774e319e4e0d0": -16692720}
SCORE = 0.9997865117966293


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dagman", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        application.main()
    return int(ended.value.code or 0)


def test_an_encoder_gives_the_features_it_gave():
    encoder = load_encoder(_MADE / "run", device="cpu")
    assert encoder.digest == DIGEST
    maps = encoder.features(torch.linspace(-1200, 700, 32**3).reshape(1, 1, 32, 32, 32))
    assert [float(x.double().sum()) for x in maps] == pytest.approx(FEATURES, rel=1e-5)


def test_a_store_holds_the_voxels_it_held():
    store = Store(_MADE / "store")
    assert {row.id: int(store.read(row.id).voxels.astype(np.int64).sum()) for row in store.rows} == VOXELS
    assert verify_store(store) == []


def test_a_run_is_drawn(tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(_MADE / "run", run)
    assert _call(monkeypatch, "report", run) == 0
    assert "Health of the run" in (run / "report.html").read_text(encoding="utf-8")


def test_results_are_drawn_and_their_model_predicts_what_it_predicted(tmp_path, monkeypatch):
    results = Results(_MADE / "results")
    assert results.summary.task == "classify"
    # Notes were sentences, and the column of the labels was in the command line alone.
    seen = "2 test scans were seen in pretraining (unlabelled), so results may be too good: body0.nii.gz, body1.nii.gz"
    assert results.summary.notes[0] == warn(f"run: {seen}")
    assert {note.kind for note in results.summary.notes[1:]} == {"info"}
    page = render_classification(results)
    short = seen.replace("body0.nii.gz, body1.nii.gz", "body0.nii.gz and 1 more (listed under Notes)")
    assert (page.count(short), page.count(seen)) == (1, 1), "it is a remark on what was found, and is listed whole with the others"
    assert "(<code>kind</code>: " in page
    assert _call(monkeypatch, "predict", results.path, _MADE / "body0.nii.gz", "--out", tmp_path / "scan", "--device", "cpu") == 0
    table = pd.read_csv(_MADE / "points.csv").head(2)
    table["scan"] = str(_MADE / "body0.nii.gz")
    table.to_csv(tmp_path / "points.csv", index=False)
    out = tmp_path / "points"
    assert _call(monkeypatch, "predict", results.path, tmp_path / "points.csv", "--out", out, "--device", "cpu") == 0
    predicted = pd.read_csv(out / "predictions.csv")
    assert predicted["predicted"].tolist() == ["a", "b"]
    assert predicted["score_a"].tolist() == pytest.approx([SCORE, 1 - SCORE], abs=1e-6)
