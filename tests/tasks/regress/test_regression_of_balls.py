"""Proves that a regression finds the size of a ball in other patients, keeps a model that holds its contract, and refuses words."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dagman.errors import TaskError
from dagman.reports.tasks.comparison import render_comparison
from dagman.reports.tasks.regression import render_regression, write_regression_report
from dagman.store.crops import CropSpec
from dagman.tables.table import read_table
from dagman.tasks.classify.classification import classify_items
from dagman.tasks.finetuning import choose_finetuning
from dagman.tasks.inputs.examples import read_examples
from dagman.tasks.models import parse_model
from dagman.tasks.prediction import predict_scans
from dagman.tasks.regress.model import load_regression
from dagman.tasks.regress.regression import RegressionSettings, regress_items

_CROP = CropSpec(160, 5)


@pytest.fixture(scope="module")
def balls(tmp_path_factory, make_ball) -> Path:
    """Twelve patients with a ball each, a split of their own, and columns: the radius, the same but for one row, and words."""
    folder = tmp_path_factory.mktemp("radii")
    rows = []
    for number in range(12):
        radius = 3 + 0.4 * number
        hu, ball = make_ball(number, radius=radius)
        for name, values in (("ct", hu), ("ball", ball)):
            nib.save(nib.Nifti1Image(values, np.diag([-5.0, 5.0, 5.0, 1.0])), folder / f"{name}{number}.nii.gz")
        part = ("train", "train", "val", "test")[number % 4]
        row = (f"ct{number}.nii.gz", f"ball{number}.nii.gz", f"p{number}", radius, "" if number == 11 else radius, part, "a")
        rows.append(row)
    pd.DataFrame(rows, columns=["scan", "mask", "patient", "radius", "holes", "part", "word"]).to_csv(folder / "t.csv", index=False)
    return folder


def _regress(balls: Path, out: Path, *models: str, label: str = "radius", split: str | None = None, **settings):
    table = read_table(balls / "t.csv", clinical=(label,), split=split)
    chosen = RegressionSettings(label=label, crop=_CROP, device="cpu", resamples=100, folds=3, **settings)
    return regress_items([parse_model(model) for model in models], table, out, chosen)


def test_a_size_is_predicted_in_other_patients_and_the_kept_model_holds_its_contract(balls, tmp_path):
    results = _regress(balls, tmp_path / "out", "radiomics:size", label="holes", repeats=2, per_class=(4,))
    held = {(row.name, row.subset): row.interval for row in results.summary.measurements}
    assert held["r2", "100%"].value > 0.9
    assert held["spearman", "100%"].value > 0.9
    assert ("r2", "k=4") in held
    assert held["r2", "100%"].patients == 11
    assert any("has no number in 1 row: skipped (row 12)" in note.text for note in results.summary.notes)
    assert (results.command["settings"]["repeats"], results.columns) == (2, {"label": "holes"})
    page = render_regression(results)
    for words in (
        "better than the mean (R² of 0)",
        "over 11 patients and 2 repeats",
        "ridge regression",
        "n = 11 items of 11 patients",
    ):
        assert words in page
    kinds = [one.kind for one in read_examples(tmp_path / "out")[1]]
    assert kinds == ["best", "best", "median", "median", "worst", "worst"]
    page = write_regression_report(results).read_text(encoding="utf-8")
    linked = re.findall(r'href="report-viewer\.html#([^"]*)"', page)
    assert linked == [f"{kind}-{number}" for number, kind in enumerate(kinds, start=1)]
    assert (tmp_path / "out" / "report-viewer.html").is_file()
    model = load_regression(tmp_path / "out")
    assert (model.contract.units, model.contract.items, model.contract.patients) == (("structure",), 11, 11)
    with pytest.raises(TaskError, match=r"trained on structures \(masks\), but 1 item was given as whole scans"):
        predict_scans(tmp_path / "out", [balls / "ct0.nii.gz"], tmp_path / "p")
    summary = predict_scans(tmp_path / "out", [balls / "t.csv"], tmp_path / "p")
    assert summary.task == "regress"
    assert any(note.startswith("11 of 12 items are of scans the model was trained on") for note in summary.notes)
    predicted = pd.read_csv(tmp_path / "p" / "predictions.csv")["predicted"]
    np.testing.assert_allclose(predicted, 3 + 0.4 * np.arange(12), atol=0.5)


def test_models_are_compared_on_identical_splits_and_numbers_dealt_anew_are_worth_nothing(balls, tmp_path):
    results = _regress(balls, tmp_path / "two", "radiomics:size", "histogram", repeats=1)
    rows = results.predictions
    assert [row.second for row in results.summary.comparisons] == ["histogram", "histogram"]
    parts = [part[["item", "repeat", "fold"]].to_numpy().tolist() for _, part in rows.groupby("model", sort=False)]
    assert parts[0] == parts[1]
    assert "mean absolute error" in render_comparison(results)
    assert not results.model.exists()
    table = pd.read_csv(balls / "t.csv")
    table["dealt"] = np.random.default_rng(4).permutation(table["radius"])
    table.to_csv(balls / "dealt.csv", index=False)
    items = read_table(balls / "dealt.csv", clinical=("dealt",))
    chosen = RegressionSettings(label="dealt", crop=_CROP, folds=3, resamples=100)
    (r2,) = [
        row.interval
        for row in regress_items([parse_model("radiomics:size")], items, tmp_path / "dealt", chosen).summary.measurements
        if row.name == "r2"
    ]
    assert r2.low < 0


def test_a_fine_tuned_model_predicts_in_the_unit_of_its_label_and_is_what_was_scored(balls, small_encoder_folder, tmp_path):
    tuning = choose_finetuning("short", epochs=1)
    results = _regress(balls, tmp_path, str(small_encoder_folder), split="part", methods=("ridge", "finetune"), finetuning=tuning)
    assert results.command["settings"]["repeats"] == 1
    journal = (tmp_path / "scores.jsonl").read_text()
    scored = results.predictions[results.predictions["method"] == "finetune"].set_index("item")["predicted"]
    assert scored.between(1, 10).all()
    model = load_regression(tmp_path, device="cpu")
    table = read_table(balls / "t.csv", clinical=("radius",), split="part")
    tested = [item for item in table.items if item.split == "test"]
    assert model.method == "finetune"
    assert set(scored.index) == {item.name for item in tested}
    np.testing.assert_allclose(model.predict(tested).values, scored[[item.name for item in tested]], atol=1e-4)
    again = _regress(balls, tmp_path, str(small_encoder_folder), split="part", methods=("ridge", "finetune"), finetuning=tuning)
    assert (tmp_path / "scores.jsonl").read_text() == journal
    pd.testing.assert_series_equal(again.predictions["predicted"], results.predictions["predicted"])


def test_words_and_one_number_are_refused_and_a_number_is_no_class(balls, tmp_path):
    with pytest.raises(TaskError, match=r"column 'word' holds words \('a'\), not numbers. For classes use dagman classify"):
        _regress(balls, tmp_path, "radiomics:size", label="word")
    with pytest.raises(TaskError, match=r"'radius' holds 12 different numbers \(3.0 to 7.4\), not classes. .* dagman regress"):
        classify_items([parse_model("radiomics:size")], read_table(balls / "t.csv", label="radius"), tmp_path)
