"""Proves that the demo's page claims no more than its seeds allow."""

from __future__ import annotations

import pytest

from dagman.reports.demo_report import DemoTask, explain_scores, tabulate_scores
from dagman.tasks.probing import ProbeScore


def _make_task(pretrained: tuple[float, ...], fresh: tuple[float, ...], size: float = 0.5) -> DemoTask:
    held = {"pretrained": pretrained, "fresh": fresh, "size alone": (size,) * len(fresh)}
    scores = [ProbeScore(model=model, probe="linear", values=values) for model, values in held.items()]
    return DemoTask(title="Nodule", measure="AUC", scores=scores)


def test_one_seed_has_no_spread_and_proves_nothing():
    task = _make_task((0.81,), (0.80,))
    assert tabulate_scores(task)[1] == [["pretrained", "0.810"], ["fresh", "0.800"], ["size alone", "0.500"]]
    assert explain_scores(task) == [
        ("warn", "Nodule, linear: one seed, which tells nothing of chance: pretrained less fresh +0.010.")
    ]


@pytest.mark.parametrize(
    ("pretrained", "size", "level", "words"),
    [
        ((0.9, 0.8), 0.5, "ok", "pretraining helps at every seed, by +0.150 on average."),
        ((0.9, 0.8), 0.99, "warn", "pretraining helps at every seed, by +0.150 on average; "
            "size alone is better still (0.990 against 0.850)."),
        ((0.6, 0.6), 0.5, "warn", "the fresh encoder wins at every seed, by 0.100 on average."),
        ((0.8, 0.7), 0.5, "warn", "pretraining changes little (+0.050 on average, 1 of 2 seeds better)."),
    ],
)  # fmt: skip
def test_several_seeds_are_told_as_they_fell(pretrained, size, level, words):
    task = _make_task(pretrained, (0.7, 0.7), size)
    assert explain_scores(task) == [(level, f"Nodule, linear: {words}")]
    assert "±" in tabulate_scores(task)[1][0][1]
