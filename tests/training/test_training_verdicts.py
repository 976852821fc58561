"""Each monitor's verdict follows from its numbers: the cases of METHOD's tables, the limits between them, and what to try."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dagman.settings.presets import load_settings
from dagman.settings.resolution import resolve_settings
from dagman.training.monitoring import verdicts
from dagman.training.monitoring.health import Health, list_warnings
from dagman.training.monitoring.verdicts import Verdict, sum_up


def _targets(H: float, MI: float, gain: float, ce: float = 5.0) -> dict[str, float]:
    return {"H": H, "Hx": H, "MI": MI, "gain": gain, "ce": ce, "ln_k": math.log(1024)}


@pytest.mark.parametrize(
    ("name", "watched", "step", "light", "says"),
    [
        # METHOD, Small runs: the four rows of the table, then a healthy long run.
        ("ampd", _targets(0.99, 0.01, 0.13), 150, "red", "ln K"),
        ("aitd", _targets(0.50, 0.01, -1.7), 150, "red", "collapsed"),
        ("gitd", _targets(0.70, 0.53, -0.23), 150, "amber", "no better than a constant"),
        ("ampd", _targets(0.50, 0.35, 0.21), 150, "green", "predicts"),
        ("ampd", _targets(0.50, 0.35, 0.05), 150, "green", "is beginning to predict"),
        ("aitd", _targets(0.50, 0.50, 0.40), 150, "green", "predicts"),
        ("ampd", _targets(0.50, 0.10, 0.21), 150, "green", "hardly distinguish"),
        ("ampd", _targets(0.50, 0.35, 0.00), 150, "amber", "Longer runs"),
        ("aitd", _targets(0.50, 0.50, 0.00), 150, "amber", "image-level targets"),
        ("aitd", _targets(0.50, 0.50, 0.00, ce=6.93), 150, "amber", "has not fallen below ln K"),
        ("aitd", _targets(0.50, 0.50, 0.00, ce=6.93), 20, "amber", "image-level targets"),
        # Fresh networks have uniform targets: no fault before step 90.
        ("ampd", _targets(0.99, 0.01, 0.0), 0, "amber", "may still recover"),
        ("ampd", _targets(0.40, 0.01, 0.0), 25, "amber", "may still recover"),
    ],
)
def test_targets_are_judged_by_entropy_then_by_what_they_tell_then_by_gain(name, watched, step, light, says):
    verdict = verdicts.judge_targets(name, watched, step, 200)
    assert verdict.light == light
    assert says in verdict.plain
    assert bool(verdict.remedy) == (light != "green" and "may still recover" not in says)
    assert name.upper() in verdict.text


def test_a_gain_without_bounds_is_not_printed_to_its_last_digit():
    assert "gain below -99)" in verdicts.judge_targets("gitd", _targets(0.99, 0.0, -640983.22), 150, 200).text


def test_a_temperature_that_is_solved_for_is_not_blamed_for_uniform_targets():
    told = [verdicts.judge_targets("ampd", _targets(0.99, 0.01, 0.0), 150, 200, solved=one).remedy for one in (False, True)]
    assert ["teacher.temperature" in remedy for remedy in told] == [True, False]
    assert "optim.lr" in told[1]


@pytest.mark.parametrize(
    ("student", "step", "light"), [(0.15, 150, "green"), (0.15, 0, "green"), (0.25, 89, "amber"), (0.25, 90, "red")]
)
def test_a_reconstruction_must_beat_the_best_trivial_baseline_after_ninety_steps(student, step, light):
    watched = {"student": student, "visible_mean": 0.28, "training_median": 0.24, "push_pull": 0.22, "ratio": student / 0.22}
    verdict = verdicts.judge_reconstruction(watched, step)
    assert verdict.light == light
    assert "interpolation from" in verdict.text


@pytest.mark.parametrize(
    ("std", "rank", "light"), [(0.3, 80.0, "green"), (0.01, 80.0, "red"), (0.3, 1.2, "red"), (0.02, 1.6, "green")]
)
def test_features_that_shrink_to_a_point_or_a_line_have_collapsed(std, rank, light):
    assert verdicts.judge_features({"std": std, "effective_rank": rank}, {"std": 0.3, "effective_rank": 90.0}).light == light


@pytest.mark.parametrize(
    ("entropy", "brightness", "light", "says"),
    [
        # As always in short runs; after a long one it is a reservation.
        (0.9985, 0.1, "green", "almost uniform"),
        (0.9985, 0.85, "amber", "brightest"),
        (0.9985, -0.85, "amber", "darkest"),
        (0.9, 0.85, "amber", "follows brightness"),
        (0.9, 0.1, "green", "neither"),
    ],
)
def test_uniform_attention_is_not_dressed_up(entropy, brightness, light, says):
    verdict = verdicts.judge_attention({"entropy": entropy, "brightness": brightness}, guides=True)
    assert verdict.light == light
    assert says in verdict.text


@pytest.mark.parametrize(
    ("shares", "light"),
    [
        ([], "green"),
        ([0.9] * 5, "green"),
        ([0.9] + [0.01] * 20, "green"),
        ([0.0] + [0.21] * 20, "amber"),
        ([0.0] + [0.19] * 20, "green"),
    ],
)
def test_waiting_above_a_fifth_is_said_and_the_first_step_does_not_count(shares, light):
    assert verdicts.judge_waiting(shares).light == light


def test_attention_that_stays_uniform_in_a_long_run_is_a_reservation():
    uniform = {"entropy": 0.9985, "brightness": 0.1}
    assert [verdicts.judge_attention(uniform, guides=True, step=step).light for step in (999, 1000)] == ["green", "amber"]


def test_the_last_step_of_a_run_is_judged_however_short_the_run():
    dead = _targets(0.40, 0.01, 0.0)
    assert [verdicts.judge_targets("ampd", dead, step, 20).light for step in (19, 20)] == ["amber", "red"]


def test_few_tokens_that_lie_on_a_line_from_the_start_are_not_a_collapse():
    assert verdicts.judge_features({"std": 0.3, "effective_rank": 1.0}, {"std": 0.3, "effective_rank": 1.0}).light == "green"


@pytest.mark.parametrize(
    ("share", "light", "key"),
    [(0.625, "green", ""), (0.2, "amber", "masks-sparse"), (0.0, "red", "masks-empty"), (1.0, "red", "masks-full")],
)
def test_masks_must_hide_what_was_asked_for(share, light, key):
    verdict = verdicts.judge_masks({"share": share, "wanted": 0.625})
    assert (verdict.light, verdict.key) == (light, key)


@pytest.mark.parametrize(
    ("scans", "patients", "copies", "light", "says"),
    [
        (12, 12, [], "green", "12 of 12 patients"),
        (1, 1, [], "red", "one scan"),
        (2, 2, [("a", "b")], "red", "copies of one another"),
        (12, 12, [("a", "b"), ("c", "d", "e")], "amber", "3 of 12 are copies of other scans (a = b; c = d = e)"),
        (12, 1, [], "amber", "one patient"),
    ],
)
def test_a_store_must_hold_scans_that_differ(scans, patients, copies, light, says):
    verdict = verdicts.judge_scans(scans, patients, copies)
    assert verdict.light == light
    assert says in verdict.text


def test_a_teacher_that_stands_still_or_keeps_its_first_weights_is_said():
    first, moved = {"step": 0, "features": {"std": 0.3}}, {"step": 9, "features": {"std": 0.31}}
    assert verdicts.judge_teacher(moved, first, 0.01).light == "green"
    assert verdicts.judge_teacher(moved, first, 0.8).key == "teacher-slow"
    assert verdicts.judge_teacher(first | {"step": 9}, first, 0.01).key == "teacher-frozen"


def _steps(totals: list[float | None], norm: float = 1.0) -> list[dict[str, float | int | None]]:
    return [{"step": number, "total": total, "grad_norm": norm} for number, total in enumerate(totals, start=1)]


@pytest.mark.parametrize(
    ("rows", "light", "says"),
    [
        ([], "amber", "no step"),
        (_steps([1.0]), "green", "finite"),
        (_steps([1.0, math.nan, 1.0]), "red", "from step 2 on"),
        (_steps([1.0, None]), "red", "from step 2 on"),
        (_steps([1.0] * 8, norm=9.0), "amber", "100%"),
    ],
)
def test_losses_must_be_finite_and_the_gradient_mostly_uncut(rows, light, says):
    (verdict,) = verdicts.judge_losses(rows, clip=3.0)
    assert verdict.light == light
    assert says in verdict.text


@pytest.mark.parametrize(("batch", "steps", "window"), [(4, 1000, 25), (16, 1000, 10), (64, 300_000, 10), (4, 30, 10), (4, 60, 20)])
def test_losses_are_averaged_over_enough_views(batch, steps, window):
    assert verdicts.choose_window(batch, steps) == window


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_varies_between_scans_as_with_four_views_per_step_does_not_diverge(seed):
    # A run of 1,000 steps on 49 CTs: the loss of a step has a standard deviation of 37 % of its mean, once it has fallen.
    random = np.random.default_rng(seed)
    mean = 0.09 + 0.11 * np.exp(-np.arange(1000) / 150)
    losses = mean * random.gamma(1 / 0.37**2, 0.37**2, 1000)
    health = Health(settings=resolve_settings(load_settings("tiny", assignments=["train.steps=1000"])[0])[0])
    for step, amip in enumerate(losses, start=1):
        health.add_step({"step": step, "total": 2.0, "amip": amip, "grad_norm": 1.0})
        if step % 25 == 0:
            assert not [verdict for verdict in health.judge() if verdict.key == "diverging"], step
    for step in range(1001, 1051):
        health.add_step({"step": step, "total": 2.0, "amip": 2.5 * losses[step - 501], "grad_norm": 1.0})
    assert [verdict for verdict in health.judge() if verdict.key == "diverging"]


@pytest.mark.parametrize(
    ("last", "start", "best", "diverges"),
    [
        (0.15, 0.3, 0.14, False),
        (0.22, 0.3, 0.14, True),
        (0.35, 0.3, None, False),
        (0.37, 0.3, None, True),
        (0.5, None, None, False),
    ],
)
def test_a_loss_far_above_its_start_or_its_best_diverges(last, start, best, diverges):
    rows = [row | {"amip": last} for row in _steps([1.0] * verdicts.WINDOW)]
    (verdict,) = verdicts.judge_losses(rows, 3.0, start, best)
    assert (verdict.key == "diverging") == diverges


def test_only_what_deserves_it_is_warned_of():
    judged = [Verdict(light="amber", text="**Early**."), Verdict(light="red", text="**Dead**.", remedy="Mend `it`.", key="dead")]
    assert list_warnings(judged) == [("dead", "Dead. Mend it.")]


@pytest.mark.parametrize(
    ("levels", "light", "says"),
    [
        (["green", "green"], "green", "healthy"),
        (["green", "amber"], "amber", "1 warning"),
        (["amber", "red", "red"], "red", "2 faults and 1 warning."),
        (["red"], "red", "1 fault. Fix the fault"),
        ([], "green", "healthy"),
    ],
)
def test_the_headline_is_as_grave_as_the_gravest(levels, light, says):
    headline = sum_up([Verdict(light=level, text="", remedy=f"Mend {level}.") for level in levels])
    assert headline.light == light
    assert headline.remedy == ("" if light == "green" else f"Mend {light}.")
    assert says in headline.text
