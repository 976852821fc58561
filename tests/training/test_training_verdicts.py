"""The verdicts of a run as a table: which numbers raise which warning, in plain words that name the setting to change."""

from __future__ import annotations

import math

import pytest

from dagman.training.monitoring.verdicts import judge_monitors, judge_projector, judge_waiting

LN_K = math.log(1024)
FINE = {"H": 0.5, "Hx": 0.8, "MI": 0.5, "gain": 0.4, "ce": 0.8 * LN_K, "ln_k": LN_K}


@pytest.mark.parametrize(
    ("changes", "early", "key"),
    [
        ({}, False, None),
        ({"H": 0.98, "MI": 0.01}, False, "uniform"),
        ({"H": 0.98, "MI": 0.01}, True, "uniform"),
        ({"H": 0.1, "MI": 0.04}, False, "collapse"),
        ({"H": 0.5, "MI": 0.04}, True, "collapse"),
        ({"ce": 0.995 * LN_K, "gain": 0.0}, False, "ln-k"),
        ({"ce": 0.995 * LN_K, "gain": 0.0}, True, None),
        # The student beats a constant, whatever the loss.
        ({"ce": 0.995 * LN_K, "gain": 0.1}, False, None),
        ({"ce": 0.98 * LN_K, "gain": -0.2}, False, None),
        ({"H": 0.97}, False, None),
        ({"MI": 0.05}, False, None),
    ],
)
@pytest.mark.parametrize("name", ["ampd", "aitd", "gitd"])
def test_a_projector_is_judged_by_its_numbers(name, changes, early, key):
    warnings = judge_projector(name, FINE | changes, early)
    assert [found for found, _ in warnings] == ([] if key is None else [f"{key}-{name}"])
    assert all(name.upper() in text for _, text in warnings)
    assert all(text.endswith(".") for _, text in warnings)


def test_a_row_is_judged_projector_by_projector():
    row = {"step": 5, "projectors": {"ampd": FINE, "aitd": FINE | {"MI": 0.0}, "gitd": FINE | {"H": 0.99}}}
    assert [key for key, _ in judge_monitors(row, early=False)] == ["collapse-aitd", "uniform-gitd"]
    assert judge_monitors({"step": 5}, early=False) == []


@pytest.mark.parametrize(
    ("shares", "warned"),
    [([], False), ([0.9] * 9, False), ([0.2] * 10, False), ([0.21] * 10, True), ([0.0] * 40 + [1.0] * 11, True)],
)
def test_waiting_above_a_fifth_of_the_time_is_said(shares, warned):
    warnings = judge_waiting(shares)
    assert [key for key, _ in warnings] == (["waiting"] if warned else [])
    if warned:
        assert "waiting for data" in warnings[0][1]
