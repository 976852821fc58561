"""Proves what a comparison asks of each task's own function, and what it refuses before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagman.errors import TaskError
from dagman.store.crops import CropSpec
from dagman.tasks import comparison
from dagman.tasks.comparison import ComparisonRequest, compare_models
from dagman.tasks.models import parse_model

_MODELS = (parse_model("pixels"), parse_model("histogram"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    rows = ["scan,patient,label,split,center_x_mm,center_y_mm,center_z_mm"]
    rows += [f"scan.nii.gz,p{number},{number % 2},train,{number},2,3" for number in range(4)]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return tmp_path / "table.csv"


def _request(table: Path, **options: object) -> ComparisonRequest:
    return ComparisonRequest(models=_MODELS, table=table, out=table.parent / "out", **options)


def test_clusters_are_asked_for_without_the_tables_split(table, monkeypatch):
    asked = {}
    monkeypatch.setattr(comparison, "cluster_structures", lambda models, read, out, settings, **rest: asked.update(locals()))
    compare_models("cluster", _request(table, label="label", coordinates="lps", crop=CropSpec(32.0, 1.0), seed=5))
    assert asked["models"] == _MODELS
    assert asked["read"].splits is None
    assert asked["read"].items[3].center_mm == (-3.0, -2.0, 3.0)
    assert (asked["settings"].crop, asked["settings"].seed) == (CropSpec(32.0, 1.0), 5)


def test_what_was_not_said_is_left_to_the_task(table, monkeypatch):
    asked = {}
    monkeypatch.setattr(comparison, "classify_items", lambda models, read, out, settings, **rest: asked.update(locals()))
    compare_models("classify", _request(table, label="label", epochs=3, folds=2))
    assert asked["settings"] == comparison.ClassificationSettings(
        folds=2, finetuning=comparison.choose_finetuning("short", epochs=3)
    )
    assert set(asked["read"].splits) == {"train"}


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("classify", {}, "classify needs a label. Give --label COL"),
        ("classify", {"label": "label", "steps": 5}, "--steps has no meaning for classify. Leave it out"),
        ("classify", {"label": "label", "clinical": ("age",), "time": "t"}, "--time, --clinical has no meaning for classify"),
        ("cluster", {"label": "label", "methods": ("linear",)}, "--method has no meaning for cluster"),
        ("outcome", {}, "outcome needs a response, or time and event"),
        ("outcome", {"label": "label", "time": "t", "event": "e"}, "outcome needs a response, or time and event"),
        ("outcome", {"label": "label", "methods": ("cox",)}, "Leave --method out, or compare classify"),
        ("outcom", {}, "there is no task 'outcom'. Nearest: outcome"),
    ],
)
def test_what_a_task_does_not_know_is_refused(table, task, options, said):
    with pytest.raises(TaskError) as error:
        compare_models(task, _request(table, **options))
    assert said in str(error.value)
    assert not (table.parent / "out").exists()


def test_one_model_is_no_comparison(table):
    with pytest.raises(TaskError, match="one model cannot be compared"):
        compare_models("classify", ComparisonRequest(models=_MODELS[:1], table=table, out=table.parent / "out", label="label"))
