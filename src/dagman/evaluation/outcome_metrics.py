"""How good risks are that were predicted out of fold: n patients, C columns (a repeat and draw each), T times.

Two risks are compared only where one model gave both: the models of two folds have no common scale, and comparing across folds
makes a useless model look worse than chance. Survival at a time is a probability, and is pooled over the folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman.evaluation.statistics import Difference, Interval, bootstrap_difference, bootstrap_interval
from dagman.evaluation.survival import (
    calibrate_survival,
    compare_survival,
    count_at_risk,
    estimate_survival,
    estimate_uncensored,
    tally_pairs,
)

Floats = NDArray[np.float64]
Measure = Callable[[NDArray[np.int64]], float]
"""Of rows of patients, as a resample draws them, to a number."""

MEASURES = ("harrell_c", "uno_c", "dynamic_auc", "integrated_brier")
_NAMES = {
    "harrell_c": "Harrell's C",
    "uno_c": "Uno's C",
    "dynamic_auc": "the time-dependent AUC",
    "integrated_brier": "the integrated Brier score",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold:
    """Predictions of one model for patients it was not trained on."""

    patients: NDArray = field(repr=False)
    time: Floats = field(repr=False)
    event: NDArray[np.bool_] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    "n C; the fold each patient was tested in."
    risk: Floats = field(repr=False)
    "n C"
    high: NDArray[np.bool_] = field(repr=False)
    "n C; above the median risk of the patients its model was trained on."
    uncensored: Floats = field(repr=False)
    "n C; chance of not being censored by the patient's own time, from the training patients (Uno's weights)."
    times: Floats
    "T; where survival was predicted."
    survival: Floats = field(repr=False)
    "n C T"

    @property
    def horizon(self) -> float:
        """The last time that is judged; infinite when there is none."""
        return float(self.times[-1]) if len(self.times) else float("inf")


def prepare_measure(name: str, found: OutOfFold) -> Measure:
    """One of MEASURES, its pairs counted beforehand over all columns so that a resample costs little.

    harrell_c, uno_c (up to the horizon), dynamic_auc (cumulative/dynamic, mean over the times weighted by the falling survival;
    Lambert and Chevret 2016), integrated_brier (Graf 1999). Weights of censoring stay those of all patients in a resample.
    """
    if name == "integrated_brier":
        losses = _integrate_brier(found)
        return lambda rows: float(losses[rows].mean()) if len(losses) else float("nan")
    if name == "dynamic_auc":
        return _prepare_auc(found)
    pairs, right = _sum_pairs(found, uno=name == "uno_c")

    def measure(rows: NDArray[np.int64]) -> float:
        counts = np.bincount(rows, minlength=len(found.time)).astype(np.float64)
        total = float(counts @ pairs @ counts)
        return float(counts @ right @ counts) / total if total else float("nan")

    return measure


def measure_outcome(found: OutOfFold, *, draws: int = 2000, seed: int = 0) -> dict[str, Interval]:
    """MEASURES with intervals over patients; those that these patients do not allow are left out (`explain_left_out`)."""
    rows = np.arange(len(found.time))
    return {
        name: bootstrap_interval(prepare_measure(name, found), rows, patients=found.patients, draws=draws, seed=seed)
        for name in list_measures(found)
    }


def list_measures(found: OutOfFold) -> list[str]:
    """Those of MEASURES that these patients allow."""
    rows = np.arange(len(found.time))
    asked = MEASURES if len(found.times) > 1 else MEASURES[:2]
    return [name for name in asked if not np.isnan(prepare_measure(name, found)(rows))]


def explain_left_out(found: OutOfFold) -> list[str]:
    """A sentence for those of MEASURES that these patients do not allow, each with what is lacking."""
    left_out = [name for name in MEASURES if name not in list_measures(found)]
    if left_out and np.ptp(found.time) == 0:
        names = ", ".join(_NAMES[name] for name in left_out)
        return [f"left out: {names}, as all times are equal ({found.time[0]:g})"]
    lacking = {
        "harrell_c": "no fold tests an event before another patient's time",
        "uno_c": "no fold tests an event, before another patient's time, that can be weighed against censoring",
        "dynamic_auc": "no fold tests a patient with the event and one still without it at each of the times",
        "integrated_brier": "no two times can be judged",
    }
    if len(found.times) < 2:
        lacking["dynamic_auc"] = lacking["integrated_brier"]
    return [f"left out: {_NAMES[name]}, as {lacking[name]}" for name in left_out]


def compare_outcome(name: str, first: OutOfFold, second: OutOfFold, *, draws: int = 2000, seed: int = 0) -> Difference:
    """First minus second of one of MEASURES, on the same resamples of the same patients."""
    measures = (prepare_measure(name, first), prepare_measure(name, second))
    rows, zeros = np.arange(len(first.time)), np.zeros(len(first.time), dtype=np.int64)

    def measure(rows: NDArray, which: NDArray) -> float:
        return measures[int(which[0])](rows)

    return bootstrap_difference(measure, rows, zeros, zeros + 1, patients=first.patients, draws=draws, seed=seed)


def describe_groups(found: OutOfFold, ticks: int = 7) -> dict[str, Any]:
    """Kaplan-Meier curves of the low and high risk groups of the first column, their log-rank test, and numbers at risk.

    `p_all` holds the p of every column, so that a lucky first repeat shows.
    """
    tests = [compare_survival(found.time, found.event, found.high[:, column]) for column in range(found.risk.shape[1])]
    marks = _place_ticks(float(found.time.max()), ticks)
    groups = []
    for name, members in (("low risk", ~found.high[:, 0]), ("high risk", found.high[:, 0])):
        if members.any():
            curve = estimate_survival(found.time[members], found.event[members])
            groups.append(
                {
                    "name": name,
                    "patients": int(members.sum()),
                    "events": int(found.event[members].sum()),
                    "times": curve.times,
                    "survival": curve.survival,
                    "low": curve.low,
                    "high": curve.high,
                    "censored": found.time[members & ~found.event],
                    "at_risk": count_at_risk(found.time[members], marks),
                }
            )
    first = tests[0]
    return {
        "groups": groups,
        "ticks": marks,
        "statistic": first.statistic,
        "degrees": first.degrees,
        "p": first.p,
        "p_all": [t.p for t in tests],
    }


def describe_calibration(found: OutOfFold) -> dict[str, Any] | None:
    """Predicted (mean over columns) and observed survival at the middle time in up to four groups; None without times."""
    if not len(found.times):
        return None
    place = len(found.times) // 2
    predicted, horizon = found.survival[:, :, place].mean(axis=1), float(found.times[place])
    groups = int(np.clip(len(predicted) // 8, 2, 4))
    bins = calibrate_survival(found.time, found.event, predicted, horizon, groups=groups)
    return {
        "horizon": horizon,
        "predicted": bins.predicted,
        "observed": bins.observed,
        "low": bins.low,
        "high": bins.high,
        "counts": bins.counts,
    }


def describe_auc(found: OutOfFold) -> dict[str, Any] | None:
    """The time-dependent AUC at each time, over all columns; None without times."""
    if not len(found.times):
        return None
    return {"times": found.times, "auc": _prepare_areas(found)(np.ones(len(found.time)))}


def _list_folds(fold: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for value in np.unique(fold):
        yield np.flatnonzero(fold == value)


def _sum_pairs(found: OutOfFold, *, uno: bool) -> tuple[Floats, Floats]:
    """Comparable pairs and the rightly ordered ones, n x n, summed over columns and folds."""
    count = len(found.time)
    pairs, right = np.zeros((count, count)), np.zeros((count, count))
    limit = found.horizon if uno else float("inf")
    for column in range(found.risk.shape[1]):
        for members in _list_folds(found.fold[:, column]):
            time, event, chance = found.time[members], found.event[members], found.uncensored[members, column]
            weights = np.ones(len(members))
            if uno:
                event = event & (chance > 0) & (time < limit)
                weights = 1 / np.where(chance > 0, chance, 1) ** 2
            comparable, concordant = tally_pairs(time, event, found.risk[members, column], weights)
            pairs[np.ix_(members, members)] += comparable
            right[np.ix_(members, members)] += concordant
    return pairs, right


def _integrate_brier(found: OutOfFold) -> Floats:
    """The integrated Brier loss of each patient (n), weighted against censoring; its mean is the score."""
    if len(found.times) < 2:
        return np.full(len(found.time), np.nan)
    own = estimate_uncensored(found.time, found.event, found.time)
    at = estimate_uncensored(found.time, found.event, found.times)
    died = (found.time[:, None] <= found.times) & found.event[:, None]
    alive = found.time[:, None] > found.times
    weights_died = np.where(died, 1 / np.where(own > 0, own, np.inf)[:, None], 0.0)
    weights_alive = np.where(alive, 1 / np.where(at > 0, at, np.inf)[None, :], 0.0)
    losses = (found.survival**2).mean(axis=1) * weights_died + ((1 - found.survival) ** 2).mean(axis=1) * weights_alive
    return np.trapezoid(losses, found.times, axis=1) / (found.times[-1] - found.times[0])


def _prepare_auc(found: OutOfFold) -> Measure:
    if not len(found.times):
        return lambda rows: float("nan")
    areas = _prepare_areas(found)
    # Each time counts by how much survival falls up to it.
    falls = -np.diff(np.append(1.0, estimate_survival(found.time, found.event).at(found.times)))

    def measure(rows: NDArray[np.int64]) -> float:
        counts = np.bincount(rows, minlength=len(found.time)).astype(np.float64)
        return float(areas(counts) @ falls / falls.sum()) if falls.sum() > 0 else float("nan")

    return measure


def _prepare_areas(found: OutOfFold) -> Callable[[Floats], Floats]:
    """The AUC at each time (T) of how often each patient counts (n)."""
    own = estimate_uncensored(found.time, found.event, found.time)
    inverse = np.where(own > 0, 1 / np.where(own > 0, own, 1), 0.0)
    cases = ((found.time <= found.times[:, None]) & found.event) * inverse
    controls = (found.time > found.times[:, None]).astype(np.float64)
    count = len(found.time)
    pairs, ahead = np.zeros((count, count)), np.zeros((count, count))
    for column in range(found.risk.shape[1]):
        for members in _list_folds(found.fold[:, column]):
            risk, block = found.risk[members, column], np.ix_(members, members)
            pairs[block] += 1
            ahead[block] += (risk[:, None] > risk) + 0.5 * (risk[:, None] == risk)

    def measure(counts: Floats) -> Floats:
        first, second = cases * counts, controls * counts
        total = np.sum((first @ pairs) * second, axis=1)
        return np.sum((first @ ahead) * second, axis=1) / np.where(total > 0, total, np.nan)

    return measure


def _place_ticks(end: float, count: int) -> Floats:
    """Round times from 0 to at most `end`."""
    if end <= 0:
        return np.array([0.0])
    rough = end / max(count - 1, 1)
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return np.arange(0.0, end * 1.0001, step)
