"""Proves that the registry of tasks is open: the task that docs/guides/own-task.md builds goes through every command and page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from dagman.errors import SettingsError
from dagman.evaluation.measures import MEASURES
from dagman.evaluation.results import Results
from dagman.study.plan import list_jobs, read_study
from dagman.tasks.registry import TASKS, find_task, load_part, register_task

pytestmark = pytest.mark.journey

_GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "own-task.md"
_STUDY = """
title = "own"
methods = ["dagman"]
seeds = [0]
[[tasks]]
name = "volume"
task = "{task}"
table = "table.csv"
measure = "absolute_error"
"""


@pytest.fixture
def estimate() -> Iterator[None]:
    """The task of the guide, registered for one test."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", _GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(block, names)
    yield
    del TASKS["estimate"], MEASURES["absolute_error"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight bodies at 5 mm with a ball each, its radius as a column; the last has no number in `holes`."""
    folder = tmp_path_factory.mktemp("estimate")
    rows = []
    for number in range(8):
        radius = 3 + 0.5 * number
        places = np.stack(np.meshgrid(*(np.arange(side) for side in (34, 32, 30)), indexing="ij"))
        hu = np.full(places.shape[1:], -1000.0)
        hu[3:-3, 3:-3] = 40
        ball = ((places - np.array([17, 16, 15])[:, None, None, None]) ** 2).sum(0) < radius**2
        hu[ball] = 300
        hu += np.random.default_rng(number).normal(0, 10, hu.shape)
        for name, values in ((f"body{number}", np.rint(hu).astype(np.int16)), (f"ball{number}", ball.astype(np.uint8))):
            image = nibabel.Nifti1Image(values, np.diag([-5.0, 5.0, 5.0, 1.0]))
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / f"{name}.nii.gz")
        holes = "" if number == 7 else radius
        rows.append((f"body{number}.nii.gz", f"ball{number}.nii.gz", f"p{number}", radius, holes))
    pd.DataFrame(rows, columns=["scan", "mask", "patient", "radius", "holes"]).to_csv(folder / "table.csv", index=False)
    return folder


def test_a_task_of_ones_own_is_run_compared_and_applied(estimate, call_dagman, place, make_tiny_encoder, tmp_path):
    encoder = make_tiny_encoder(spacing=5.0, semantic=False)
    assert re.search(r"estimate\s+Predict a number from frozen features", call_dagman("--help")[1])
    fast = (place / "table.csv", "--target", "radius", "--folds", 2, "--repeats", 1, "--device", "cpu")
    code, printed, errors = call_dagman("estimate", encoder, *fast, "--json", "--out", tmp_path / "one")
    assert code == 0, errors
    (measured,) = json.loads(printed)["measurements"]
    rows = Results(tmp_path / "one").predictions
    assert measured["interval"]["value"] == pytest.approx((rows["predicted"] - rows["label"].astype(float)).abs().mean())
    page = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert "mean absolute error" in page
    assert "The column <code>radius</code> was predicted by ridge regression on frozen features. 2-fold cross-validation" in page
    code, _, errors = call_dagman("compare", "estimate", encoder, "radiomics:size", *fast, "--out", tmp_path / "two")
    assert code == 0, errors
    page = (tmp_path / "two" / "report.html").read_text(encoding="utf-8")
    assert "Task <code>estimate</code> for 2 models" in page
    assert "mean absolute error" in page
    code, _, errors = call_dagman("predict", tmp_path / "one", place / "table.csv", "--out", tmp_path / "new", "--device", "cpu")
    assert code == 0, errors
    assert len(pd.read_csv(tmp_path / "new" / "predictions.csv")) == 8
    assert json.loads((tmp_path / "new" / "command.json").read_text())["outcome"]["task"] == "estimate"


def test_its_mistakes_are_one_line(estimate, call_dagman, place, tmp_path):
    code, _, errors = call_dagman("estimate", "histogram", place / "table.csv", "--target", "holes", "--out", tmp_path / "out")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "has no number in 'holes'. Fill it, or remove the row" in errors
    assert "Nearest: estimate" in call_dagman("estimat", "histogram")[2]
    assert (
        "one model cannot be compared" in call_dagman("compare", "estimate", "histogram", "t.csv", "--target", "a", "--out", "o")[2]
    )


def test_a_study_may_name_a_registered_task_and_no_other(estimate, tmp_path):
    (tmp_path / "study.toml").write_text(_STUDY.format(task="estimate"))
    assert list_jobs(read_study(tmp_path / "study.toml"), tmp_path, tmp_path / "out")[-1].words[0] == "estimate"
    (tmp_path / "study.toml").write_text(_STUDY.format(task="estimat"))
    with pytest.raises(
        SettingsError,
        match=r"tasks\.0\.task = 'estimat': should be 'classify', 'regress', 'outcome', 'segment', 'cluster' or 'estimate'",
    ):
        read_study(tmp_path / "study.toml")


def test_every_part_that_the_registry_names_is_there():
    for task in TASKS.values():
        parts = [task.command, task.page, task.methods, *([task.model.apply] if task.model else [])]
        assert all(callable(load_part(part)) for part in parts)
        assert [find_task(kind) for kind in task.kinds or (task.name,)] == [task] * max(len(task.kinds), 1)
    with pytest.raises(ValueError, match="the task 'segment' is already registered"):
        register_task(TASKS["segment"])
