"""How good risks are that were predicted out of fold: n patients, C columns (a repeat and draw each), T times.

Two risks are compared only where one model gave both: the models of two folds have no common scale, and comparing across folds
makes a useless model seem worse than chance. Survival at a time is a probability, and is pooled over the folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman.evaluation.statistics import (
    LEAST_IN_GROUP,
    Difference,
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    find_widening,
    warn_of_few_pairs,
)
from dagman.evaluation.survival import (
    calibrate_survival,
    censoring_survival,
    comparable_pairs,
    count_at_risk,
    kaplan_meier,
    logrank_test,
)
from dagman.notes import Note, warn

Floats = NDArray[np.float64]
Measure = Callable[[NDArray[np.int64]], float]
"""Of rows of patients, as a resample draws them, to a number."""

MEASURES = ("harrell_c", "uno_c", "dynamic_auc", "integrated_brier")
_MOST_GROUPS = 4
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


def prepare_measure(name: str, predictions: OutOfFold) -> Measure:
    """One of MEASURES, its pairs counted beforehand over all columns so that a resample costs little.

    harrell_c, uno_c (up to the horizon), dynamic_auc (cumulative/dynamic, mean over the times weighted by the falling survival;
    Lambert and Chevret 2016), integrated_brier (Graf 1999). Weights of censoring stay those of all patients in a resample.
    In one fold, each is scikit-survival's measure of the table, which knows no folds and takes 10 to 500 times as long a resample.
    """
    if name == "integrated_brier":
        losses = _integrate_brier(predictions)
        return lambda rows: float(losses[rows].mean()) if len(losses) else float("nan")
    if name == "dynamic_auc":
        return _prepare_auc(predictions)
    pairs, right = _sum_pairs(predictions, uno=name == "uno_c")

    def measure(rows: NDArray[np.int64]) -> float:
        counts = np.bincount(rows, minlength=len(predictions.time)).astype(np.float64)
        total = float(counts @ pairs @ counts)
        return float(counts @ right @ counts) / total if total else float("nan")

    return measure


def measure_outcome(predictions: OutOfFold, *, draws: int = 2000, seed: int = 0) -> dict[str, Interval]:
    """MEASURES with intervals over patients, widened for refitting if there are folds.

    Those that these patients do not allow are left out (`explain_left_out`).
    """
    intervals = {
        name: bootstrap_interval(
            prepare_measure(name, predictions),
            np.arange(len(predictions.time)),
            patients=predictions.patients,
            draws=draws,
            seed=seed,
            widening=find_widening(
                lambda columns, name=name: prepare_measure(name, _take_columns(predictions, columns)),  # type: ignore[misc]
                predictions.fold,
                predictions.patients,
            ),
            limits=(0.0, 1.0),
        )
        for name in list_measures(predictions)
    }
    counts = {"harrell_c": count_comparable(predictions), "uno_c": count_comparable(predictions, uno=True)}
    ranked = {name: warn_of_few_pairs(intervals[name], pairs, "patients") for name, pairs in counts.items() if name in intervals}
    return intervals | ranked


def count_comparable(predictions: OutOfFold, *, uno: bool = False) -> int:
    """Pairs of patients of one fold whose order is known, in each repeat: what a concordance counts; Uno's up to the horizon."""
    unweighted = replace(predictions, uncensored=(predictions.uncensored > 0).astype(np.float64))
    return round(float(_sum_pairs(unweighted, uno=uno)[0].sum()) / predictions.risk.shape[1])


def list_measures(predictions: OutOfFold) -> list[str]:
    """Those of MEASURES that these patients allow."""
    rows = np.arange(len(predictions.time))
    asked = MEASURES if len(predictions.times) > 1 else MEASURES[:2]
    return [name for name in asked if not np.isnan(prepare_measure(name, predictions)(rows))]


def explain_left_out(predictions: OutOfFold) -> list[Note]:
    """A warning for those of MEASURES that these patients do not allow, each with what is lacking."""
    left_out = [name for name in MEASURES if name not in list_measures(predictions)]
    if left_out and np.ptp(predictions.time) == 0:
        names = ", ".join(_NAMES[name] for name in left_out)
        return [warn(f"left out: {names}, as all times are equal ({predictions.time[0]:g})")]
    lacking = {
        "harrell_c": "no test fold has an event before another patient's time",
        "uno_c": "no test fold has an event, before another patient's time, with a defined censoring weight",
        "dynamic_auc": "no test fold has both a patient with the event and one without it at each of the times",
        "integrated_brier": "fewer than two times can be evaluated",
    }
    if len(predictions.times) < 2:
        lacking["dynamic_auc"] = lacking["integrated_brier"]
    return [warn(f"left out: {_NAMES[name]}, as {lacking[name]}") for name in left_out]


def compare_outcome(name: str, first: OutOfFold, second: OutOfFold, *, draws: int = 2000, seed: int = 0) -> Difference:
    """First minus second of one of MEASURES, on the same resamples of the same patients; widened as `measure_outcome`."""
    measures = (prepare_measure(name, first), prepare_measure(name, second))
    rows, zeros = np.arange(len(first.time)), np.zeros(len(first.time), dtype=np.int64)

    def measure(rows: NDArray, which: NDArray) -> float:
        return measures[int(which[0])](rows)

    def subtract(columns: NDArray[np.int64]) -> Measure:
        one, other = (prepare_measure(name, _take_columns(predictions, columns)) for predictions in (first, second))
        return lambda rows: one(rows) - other(rows)

    widening = find_widening(subtract, first.fold, first.patients)
    return bootstrap_difference(measure, rows, zeros, zeros + 1, patients=first.patients, draws=draws, seed=seed, widening=widening)


def describe_groups(predictions: OutOfFold, ticks: int = 7) -> dict[str, Any]:
    """Kaplan-Meier curves of the low and high risk groups of the first column, their log-rank test, and numbers at risk.

    `p_all` holds the p of every column, so that a lucky first repeat shows.
    """
    tests = [
        logrank_test(predictions.time, predictions.event, predictions.high[:, column])
        for column in range(predictions.risk.shape[1])
    ]
    marks = _place_ticks(float(predictions.time.max()), ticks)
    groups = []
    for name, members in (("low risk", ~predictions.high[:, 0]), ("high risk", predictions.high[:, 0])):
        if members.any():
            curve = kaplan_meier(predictions.time[members], predictions.event[members])
            groups.append(
                {
                    "name": name,
                    "patients": int(members.sum()),
                    "events": int(predictions.event[members].sum()),
                    "times": curve.times,
                    "survival": curve.survival,
                    "low": curve.low,
                    "high": curve.high,
                    "censored": predictions.time[members & ~predictions.event],
                    "at_risk": count_at_risk(predictions.time[members], marks),
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


def describe_calibration(predictions: OutOfFold) -> dict[str, Any] | None:
    """Predicted (mean over columns) and observed survival at the middle time in up to four groups of LEAST_IN_GROUP or more.

    None without times, or with too few patients for two groups.
    """
    groups = min(_MOST_GROUPS, len(predictions.time) // LEAST_IN_GROUP)
    if not len(predictions.times) or groups < 2:
        return None
    place = len(predictions.times) // 2
    predicted, horizon = predictions.survival[:, :, place].mean(axis=1), float(predictions.times[place])
    bins = calibrate_survival(predictions.time, predictions.event, predicted, horizon, groups=groups)
    return {
        "horizon": horizon,
        "predicted": bins.predicted,
        "observed": bins.observed,
        "low": bins.low,
        "high": bins.high,
        "counts": bins.counts,
    }


def describe_auc(predictions: OutOfFold) -> dict[str, Any] | None:
    """The time-dependent AUC at each time, over all columns; None without times."""
    if not len(predictions.times):
        return None
    return {"times": predictions.times, "auc": _prepare_areas(predictions)(np.ones(len(predictions.time)))}


def _take_columns(predictions: OutOfFold, columns: NDArray[np.int64]) -> OutOfFold:
    kept = {name: getattr(predictions, name)[:, columns] for name in ("fold", "risk", "high", "uncensored", "survival")}
    return replace(predictions, **kept)


def _list_folds(fold: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for value in np.unique(fold):
        yield np.flatnonzero(fold == value)


def _sum_pairs(predictions: OutOfFold, *, uno: bool) -> tuple[Floats, Floats]:
    """Comparable pairs and the rightly ordered ones, n x n, summed over columns and folds."""
    count = len(predictions.time)
    pairs, right = np.zeros((count, count)), np.zeros((count, count))
    limit = predictions.horizon if uno else float("inf")
    for column in range(predictions.risk.shape[1]):
        for members in _list_folds(predictions.fold[:, column]):
            time, event, chance = predictions.time[members], predictions.event[members], predictions.uncensored[members, column]
            weights = np.ones(len(members))
            if uno:
                event = event & (chance > 0) & (time < limit)
                weights = 1 / np.where(chance > 0, chance, 1) ** 2
            comparable, concordant = comparable_pairs(time, event, predictions.risk[members, column], weights)
            pairs[np.ix_(members, members)] += comparable
            right[np.ix_(members, members)] += concordant
    return pairs, right


def _integrate_brier(predictions: OutOfFold) -> Floats:
    """The integrated Brier loss of each patient (n), weighted against censoring; its mean is the score."""
    if len(predictions.times) < 2:
        return np.full(len(predictions.time), np.nan)
    own = censoring_survival(predictions.time, predictions.event, predictions.time)
    at = censoring_survival(predictions.time, predictions.event, predictions.times)
    died = (predictions.time[:, None] <= predictions.times) & predictions.event[:, None]
    alive = predictions.time[:, None] > predictions.times
    weights_died = np.where(died, 1 / np.where(own > 0, own, np.inf)[:, None], 0.0)
    weights_alive = np.where(alive, 1 / np.where(at > 0, at, np.inf)[None, :], 0.0)
    losses = (predictions.survival**2).mean(axis=1) * weights_died + ((1 - predictions.survival) ** 2).mean(axis=1) * weights_alive
    return np.trapezoid(losses, predictions.times, axis=1) / (predictions.times[-1] - predictions.times[0])


def _prepare_auc(predictions: OutOfFold) -> Measure:
    if not len(predictions.times):
        return lambda rows: float("nan")
    areas = _prepare_areas(predictions)
    # Each time counts by how much survival falls up to it.
    falls = -np.diff(np.append(1.0, kaplan_meier(predictions.time, predictions.event).at(predictions.times)))

    def measure(rows: NDArray[np.int64]) -> float:
        counts = np.bincount(rows, minlength=len(predictions.time)).astype(np.float64)
        return float(areas(counts) @ falls / falls.sum()) if falls.sum() > 0 else float("nan")

    return measure


def _prepare_areas(predictions: OutOfFold) -> Callable[[Floats], Floats]:
    """The AUC at each time (T) of how often each patient counts (n)."""
    own = censoring_survival(predictions.time, predictions.event, predictions.time)
    inverse = np.where(own > 0, 1 / np.where(own > 0, own, 1), 0.0)
    cases = ((predictions.time <= predictions.times[:, None]) & predictions.event) * inverse
    controls = (predictions.time > predictions.times[:, None]).astype(np.float64)
    count = len(predictions.time)
    pairs, ahead = np.zeros((count, count)), np.zeros((count, count))
    for column in range(predictions.risk.shape[1]):
        for members in _list_folds(predictions.fold[:, column]):
            risk, block = predictions.risk[members, column], np.ix_(members, members)
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
