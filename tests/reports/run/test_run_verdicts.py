"""Proves that each monitor's verdict follows from its numbers: the cases of METHOD's tables, and the limits between them."""

from __future__ import annotations

import math

import pytest

from dagman.reports.page import Verdict
from dagman.reports.run import verdicts
from dagman.reports.run.pictures import find_hints, measure_uniformity


def _levels(*found: Verdict) -> list[str]:
    return [verdict.level for verdict in found]


def _targets(H: float, MI: float, gain: float, ce: float = 5.0) -> dict[str, float]:
    return {"H": H, "Hx": H, "MI": MI, "gain": gain, "ce": ce, "ln_k": math.log(1024)}


@pytest.mark.parametrize(
    ("name", "watched", "step", "level", "says"),
    [
        # METHOD, Small runs: the four rows of the table, then a healthy long run.
        ("ampd", _targets(0.99, 0.01, 0.13), 150, "bad", "ln K"),
        ("aitd", _targets(0.50, 0.01, -1.7), 150, "bad", "collapsed"),
        ("gitd", _targets(0.70, 0.53, -0.23), 150, "warn", "no better than one constant answer"),
        ("ampd", _targets(0.50, 0.35, 0.21), 150, "ok", "predicts"),
        ("ampd", _targets(0.50, 0.35, 0.05), 150, "ok", "begins to predict"),
        ("aitd", _targets(0.50, 0.50, 0.40), 150, "ok", "predicts"),
        ("ampd", _targets(0.50, 0.10, 0.21), 150, "ok", "hardly distinguish"),
        ("ampd", _targets(0.50, 0.35, 0.00), 150, "warn", "Longer runs"),
        ("aitd", _targets(0.50, 0.50, 0.00), 150, "warn", "Image targets"),
        ("aitd", _targets(0.50, 0.50, 0.00, ce=6.93), 150, "warn", "at ln K"),
        ("aitd", _targets(0.50, 0.50, 0.00, ce=6.93), 20, "warn", "Image targets"),
        # Fresh networks have uniform targets: no fault before step 90.
        ("ampd", _targets(0.99, 0.01, 0.0), 0, "warn", "may still pass"),
        ("ampd", _targets(0.40, 0.01, 0.0), 25, "warn", "may still pass"),
    ],
)
def test_targets_are_judged_by_entropy_then_by_what_they_tell_then_by_gain(name, watched, step, level, says):
    verdict = verdicts.judge_targets(name, watched, step, 200)
    assert verdict.level == level
    assert says in verdict.text
    assert name.upper() in verdict.text


@pytest.mark.parametrize(("student", "step", "level"), [(0.15, 150, "ok"), (0.15, 0, "ok"), (0.25, 89, "warn"), (0.25, 90, "bad")])
def test_a_reconstruction_must_beat_the_best_trivial_answer_after_ninety_steps(student, step, level):
    watched = {"student": student, "visible_mean": 0.28, "training_median": 0.24, "push_pull": 0.22, "ratio": student / 0.22}
    verdict = verdicts.judge_reconstruction(watched, step)
    assert verdict.level == level
    assert "a smooth fill" in verdict.text


@pytest.mark.parametrize(("std", "rank", "level"), [(0.3, 80.0, "ok"), (0.01, 80.0, "bad"), (0.3, 1.2, "bad"), (0.02, 1.6, "ok")])
def test_features_that_shrink_to_a_point_or_a_line_have_collapsed(std, rank, level):
    assert verdicts.judge_features({"std": std, "effective_rank": rank}, {"std": 0.3, "effective_rank": 90.0}).level == level


@pytest.mark.parametrize(
    ("entropy", "brightness", "level", "says"),
    [
        (0.9985, 0.1, "warn", "almost uniform"),
        (0.9985, 0.85, "warn", "brightest"),
        (0.9985, -0.85, "warn", "darkest"),
        (0.9, 0.85, "warn", "follows brightness"),
        (0.9, 0.1, "ok", "neither"),
    ],
)
def test_uniform_attention_is_not_dressed_up(entropy, brightness, level, says):
    verdict = verdicts.judge_attention({"entropy": entropy, "brightness": brightness}, guides=True)
    assert verdict.level == level
    assert says in verdict.text


@pytest.mark.parametrize(
    ("shares", "level"),
    [([], "ok"), ([0.9] * 5, "ok"), ([0.9] + [0.01] * 20, "ok"), ([0.0] + [0.21] * 20, "warn"), ([0.0] + [0.19] * 20, "ok")],
)
def test_waiting_above_a_fifth_is_said_and_the_first_step_does_not_count(shares, level):
    assert verdicts.judge_waiting(shares).level == level


def _steps(totals: list[float | None], norm: float = 1.0) -> list[dict[str, float | int | None]]:
    return [{"step": number, "total": total, "grad_norm": norm} for number, total in enumerate(totals, start=1)]


@pytest.mark.parametrize(
    ("rows", "level", "says"),
    [
        ([], "warn", "no step"),
        (_steps([1.0]), "ok", "finite"),
        (_steps([1.0, math.nan, 1.0]), "bad", "from step 2 on"),
        (_steps([1.0, None]), "bad", "from step 2 on"),
        (_steps([1.0] * 8, norm=9.0), "warn", "100%"),
    ],
)
def test_losses_must_be_finite_and_the_gradient_mostly_uncut(rows, level, says):
    (verdict,) = verdicts.judge_losses(rows, clip=3.0)
    assert verdict.level == level
    assert says in verdict.text


def test_an_unfinished_run_says_how_far_it_came():
    assert _levels(verdicts.judge_progress(300, 300), verdicts.judge_progress(299, 300)) == ["ok", "warn"]
    assert "299 of 300" in verdicts.judge_progress(299, 300).text


@pytest.mark.parametrize(
    ("levels", "level", "says"),
    [
        (["ok", "ok"], "ok", "healthy"),
        (["ok", "warn"], "warn", "1 reservation"),
        (["warn", "bad", "bad"], "bad", "2 faults, 1 note"),
        ([], "ok", "healthy"),
    ],
)
def test_the_headline_is_as_grave_as_the_gravest(levels, level, says):
    headline = verdicts.summarize_verdicts([Verdict(level, "") for level in levels])
    assert headline.level == level
    assert says in headline.text


def test_hints_are_the_most_attended_of_the_visible_units():
    import numpy as np

    attention = np.arange(10) / 45
    hidden = np.zeros(10, bool)
    hidden[[3, 4, 5, 6, 7, 8]] = True  # floor(0.7 * 10) = 7 most attended are 3..9; one hint, the top one, is given back
    assert np.flatnonzero(find_hints(hidden, attention, 0.1)).tolist() == [9]
    assert not find_hints(hidden, attention, 0.0).any()
    assert not find_hints(np.ones(10, bool), attention, 0.1).any()


def test_uniformity_is_one_for_uniform_attention_and_nothing_for_a_single_unit():
    import numpy as np

    assert measure_uniformity(np.full((2, 8), 0.1)) == pytest.approx(1.0)
    assert measure_uniformity(np.eye(8)[:2]) == pytest.approx(0.0)
