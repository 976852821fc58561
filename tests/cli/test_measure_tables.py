"""Proves how the task commands print their measures: every value whole in a narrow terminal too, and none made up."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from dagman.cli.tasks.printing import print_measures
from dagman.evaluation.results import Measurement, Summary
from dagman.evaluation.statistics import Interval
from dagman.notes import inform

VALUES = {"scratch:tiny + clinical": 0.565, "radiomics:size + clinical": 0.575, "scratch:tiny": 0.508, "clinical": math.nan}


def _print(models: list[str], width: int) -> str:
    rows = [
        Measurement(
            name=name,
            model=model,
            method="cox",
            interval=Interval(
                value=VALUES[model], low=VALUES[model] - 0.1, high=VALUES[model] + 0.1, level=0.95, items=43, patients=43, how="BCa"
            ),
        )
        for model in models
        for name in ("harrell_c", "uno_c")
    ]
    page = io.StringIO()
    print_measures(Console(file=page, width=width, soft_wrap=True), Summary(task="outcome", measurements=tuple(rows)), Path("page"))
    return page.getvalue()


@pytest.mark.parametrize("width", [80, 300])
def test_values_and_intervals_are_printed_whole_whatever_the_width(width):
    text = _print(list(VALUES), width)
    for value in ("0.565", "0.575", "0.508", "0.41 to 0.61"):
        assert text.count(value) == 2, value
    assert "nan" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_structures_have_a_row_each_and_the_rest_is_pointed_to():
    rows = [
        Measurement(
            name=name + suffix,
            model="scratch:tiny",
            method="finetune",
            interval=Interval(value=value, low=value - 0.1, high=value + 0.1, level=0.95, items=9, patients=9, how="BCa"),
        )
        for suffix in ("", ":liver", ":left kidney")
        for name, value in (("dice", 0.8), ("hd95_mm", 4.2), ("nsd", 0.7), ("volume_bias_ml", 1.5))
    ]
    page = io.StringIO()
    summary = Summary(task="segment", measurements=tuple(rows), notes=(inform("no column 'patient'"), inform("another")))
    console = Console(file=page, width=100, soft_wrap=True)
    print_measures(console, summary, Path("out/report.html"), printed={"no column 'patient'"})
    text = page.getvalue()
    assert [text.count(name) for name in ("all ", "liver", "left kidney", "0.800 (0.70 to 0.90)", "4.200")] == [1, 1, 1, 3, 3]
    assert "All 12 values and their intervals are in metrics.json, the scores of each scan in predictions.csv, in out." in text
    assert "volume" not in text
    assert "another" in text
    assert "no column" not in text


def test_few_models_stand_beside_each_other_and_many_below():
    assert "0.508" in _print(["scratch:tiny"], 80)
    assert "model" not in _print(["scratch:tiny"], 80)
    assert "model" in _print(list(VALUES), 80)
