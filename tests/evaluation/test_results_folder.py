"""Proves that a folder of results gives back what was written, NaN and leading noughts included, and says when it cannot."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dagman.errors import TaskError
from dagman.evaluation.results import (
    Comparison,
    Measurement,
    Results,
    Summary,
    refuse_other_results,
    write_inputs,
    write_predictions,
    write_summary,
)
from dagman.evaluation.splits import plan_splits, write_splits
from dagman.evaluation.statistics import bootstrap_difference, bootstrap_interval
from dagman.notes import inform, warn


def _summary() -> Summary:
    interval = bootstrap_interval(np.mean, np.arange(6.0), patients=range(6), draws=50)
    undefined = bootstrap_interval(np.mean, [1.0], patients=[1], draws=5)
    difference = bootstrap_difference(lambda a, b: float(np.mean(b)), [0, 1], [1.0, 2], [2.0, 3], patients=[1, 2], draws=9)
    measured = {"name": "auc", "method": "linear", "subset": "25%"}
    return Summary(
        task="classify",
        classes=("benign", "malignant"),
        measurements=tuple(Measurement(**measured, model=model, interval=i) for model, i in (("a", interval), ("b", undefined))),
        comparisons=(Comparison(**measured, first="a", second="b", difference=difference, corrected=float("nan")),),
        notes=(warn("2 rows left out"), inform("folds are by patient")),
        extra={"confusion": np.array([[1, 2], [3, 4]]), "curve": (np.float32(0.5), float("inf"))},
    )


def test_a_folder_of_other_results_is_refused_with_what_differs(tmp_path):
    made = {"settings": {"repeats": 5, "device": "cpu"}, "inputs": {"models": ["run"], "table": "abc"}}
    refuse_other_results(tmp_path, "classify", **made)
    write_inputs(tmp_path, "classify", **made)
    refuse_other_results(tmp_path, "classify", **made)
    refuse_other_results(tmp_path, "classify", settings={**made["settings"], "device": "cuda", "new": 1}, inputs=made["inputs"])
    with pytest.raises(TaskError, match=r"models was .'run'., now .'other'., repeats was 5, now 1"):
        refuse_other_results(tmp_path, "classify", settings={"repeats": 1}, inputs={"models": ["other"], "table": "abc"})
    with pytest.raises(TaskError, match="command was classify, now outcome"):
        refuse_other_results(tmp_path, "outcome", **made)


def test_a_summary_survives_its_file(tmp_path):
    wrote = _summary()
    write_summary(tmp_path, wrote)
    read = Results(tmp_path).summary
    assert read.measurements[0] == wrote.measurements[0]
    assert np.isnan(read.measurements[1].interval.low)
    assert read.measurements[1].interval.how == "no interval: too few patients to resample (1)"
    assert read.comparisons[0].difference.value == -1
    assert np.isnan(read.comparisons[0].corrected)
    assert (read.task, read.classes, read.notes) == (wrote.task, wrote.classes, wrote.notes)
    assert read.extra == {"confusion": [[1, 2], [3, 4]], "curve": [0.5, None]}


def test_a_summarys_file_is_plain_json(tmp_path):
    write_summary(tmp_path, _summary())
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["format"] == 1


def test_notes_are_written_with_their_kind(tmp_path):
    write_summary(tmp_path, _summary())
    written = json.loads((tmp_path / "metrics.json").read_text())["notes"]
    assert written == [{"kind": "warning", "text": "2 rows left out"}, {"kind": "info", "text": "folds are by patient"}]


def test_notes_that_were_sentences_alone_are_read_with_the_kind_their_page_gave_them(tmp_path):
    write_summary(tmp_path, _summary())
    old = json.loads((tmp_path / "metrics.json").read_text())
    seen, outside = (
        "m: 1 test scan was seen in pretraining (unlabelled)",
        "1 of 4 points falls outside its scan: left out (item n2)",
    )
    old["notes"] = [seen, "crops have a voxel size of 2 mm", outside]
    (tmp_path / "metrics.json").write_text(json.dumps(old))
    assert Results(tmp_path).summary.notes == (warn(seen), inform("crops have a voxel size of 2 mm"), warn(outside))


@pytest.mark.parametrize(
    ("inputs", "arguments", "columns"),
    [
        ({"columns": {"label": "kind"}}, ["classify", "--label", "other"], {"label": "kind"}),
        ({}, ["outcome", "table.csv", "--time", "days", "--event=died"], {"time": "days", "event": "died"}),
        ({}, ["classify", "--label"], {}),
        ({}, [], {}),
    ],
    ids=["recorded", "before they were recorded", "cut short", "called from Python"],
)
def test_the_columns_that_were_read_are_on_record(tmp_path, inputs, arguments, columns):
    write_summary(tmp_path, _summary())
    (tmp_path / "command.json").write_text(json.dumps({"inputs": inputs, "arguments": arguments}))
    assert Results(tmp_path).columns == columns


def test_predictions_and_splits_survive_their_files(tmp_path):
    write_summary(tmp_path, Summary(task="classify"))
    row = {"item": "scan 7", "patient": "007", "repeat": 0, "fold": 1, "draw": 0, "subset": "100%"}
    row |= {"model": "scratch:tiny", "method": "linear", "label": "1"}
    write_predictions(tmp_path, [{"score": 0.25, **row}, {"score": 0.75, **row, "label": "None"}])
    write_splits(tmp_path / "splits.csv", plan_splits(["007", "008"], folds=2), ["a", "b"], ["007", "008"])
    results = Results(tmp_path)
    assert results.predictions.columns.tolist() == [*row, "score"]
    assert results.predictions["patient"].tolist() == ["007", "007"]
    assert results.predictions["label"].tolist() == ["1", "None"]
    assert results.predictions["score"].tolist() == [0.25, 0.75]
    assert set(results.splits["patient"]) == {"007", "008"}
    assert set(results.splits["part"]) == {"train", "test"}


def test_a_row_without_its_patient_is_a_fault_of_ours(tmp_path):
    with pytest.raises(ValueError, match="predictions lack"):
        write_predictions(tmp_path, [{"item": "a", "score": 1}])


def test_how_the_folder_came_to_be_is_beside_it(tmp_path):
    write_summary(tmp_path, Summary(task="cluster"))
    write_inputs(tmp_path, "cluster", settings={"folds": np.int64(5)}, inputs={"table": "abc"})
    results = Results(tmp_path)
    assert results.command["settings"] == {"folds": 5}
    assert results.command["inputs"] == {"table": "abc"}
    assert results.model == tmp_path / "model"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no results (no metrics.json). Give the --out folder of a finished task."),
        ("{", "metrics.json is damaged"),
        ('{"format": 0}', "metrics.json has another format. Run the task again with this version of dagman."),
    ],
)
def test_a_folder_that_cannot_be_read_says_so(tmp_path, content, says):
    if content:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(TaskError) as caught:
        Results(tmp_path).summary  # noqa: B018 - read when asked
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_a_missing_file_of_results_is_named(tmp_path):
    write_summary(tmp_path, Summary(task="cluster"))
    with pytest.raises(TaskError, match=r"predictions\.csv is missing"):
        Results(tmp_path).predictions  # noqa: B018 - read when asked
