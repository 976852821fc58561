"""Proves that a verdict on chance follows the interval, and says over how many patients and repeats that is."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from dagman.evaluation.results import Measurement
from dagman.evaluation.statistics import Interval
from dagman.reports.tasks.chance import judge_against_chance

_NAN = float("nan")


@pytest.mark.parametrize(
    ("ends", "patients", "repeats", "folds", "level", "wanted", "unwanted"),
    [
        (
            (0.6, 0.8),
            24,
            5,
            5,
            "ok",
            ["better than chance (0.5) by its confidence interval over 24 patients and 5 repeats", "so few"],
            ["--rep"],
        ),
        ((0.6, 0.8), 240, 5, 5, "ok", ["over 240 patients and 5 repeats"], ["few", "--repeats"]),
        ((0.6, 0.8), 240, 1, 5, "ok", ["over 240 patients and 1 repeat", "`--repeats 5`"], ["few"]),
        ((0.6, 0.8), 240, 1, 1, "ok", ["over 240 patients."], ["repeat"]),
        ((0.4, 0.8), 24, 5, 5, "warn", ["cannot be distinguished from chance (0.5) with so few patients"], []),
        ((0.4, 0.8), 240, 5, 5, "warn", ["cannot be distinguished from chance (0.5)."], ["few"]),
        ((0.1, 0.4), 24, 5, 5, "bad", ["worse than chance (0.5)", "Check for data leakage"], []),
        ((_NAN, _NAN), 3, 5, 5, "warn", ["no interval: too few patients (3)"], ["better", "worse"]),
    ],
)
def test_a_verdict_speaks_of_its_interval(ends, patients, repeats, folds, level, wanted, unwanted):
    interval = Interval(
        value=0.7, low=ends[0], high=ends[1], level=0.95, items=patients, patients=patients, how="no interval: too few patients (3)"
    )
    row = Measurement(name="auc", model="run", method="linear", interval=interval)
    splits = pd.DataFrame([(r, f) for r in range(repeats) for f in range(folds)], columns=["repeat", "fold"])
    verdict = judge_against_chance(row, SimpleNamespace(splits=splits), chance=0.5, called="chance (0.5)")
    assert verdict.level == level
    assert all(words in verdict.text for words in wanted)
    assert not any(words in verdict.text for words in unwanted)
