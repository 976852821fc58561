"""Survival metrics of out-of-fold predictions.

Two risks are only compared if the same model predicted both: the models of different folds have no common scale, and comparing
across folds makes a useless model seem worse than chance. Survival at a time is a probability, so it is pooled over folds.

Notation: n patients, C columns (one per repeat and draw), T times.
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
"""Function of the rows of patients in a resample."""

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
    """Out-of-fold predictions of one model and subset for n patients."""

    patients: NDArray = field(repr=False)
    time: Floats = field(repr=False)
    event: NDArray[np.bool_] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    "n C; the fold in which each patient was tested."
    risk: Floats = field(repr=False)
    "n C"
    high: NDArray[np.bool_] = field(repr=False)
    "n C; whether the risk is above the median risk of the model's training patients."
    uncensored: Floats = field(repr=False)
    "n C; probability of not being censored by the patient's own time, from the training patients (Uno's weights)."
    times: Floats
    "T; the times at which survival was predicted."
    survival: Floats = field(repr=False)
    "n C T"

    @property
    def horizon(self) -> float:
        """The last time that is evaluated; infinite if there are no times."""
        return float(self.times[-1]) if len(self.times) else float("inf")


def prepare_measure(name: str, predictions: OutOfFold) -> Measure:
    """Prepare one of MEASURES: pairs are counted once over all columns, which makes resamples fast.

    The measures are harrell_c, uno_c (up to the horizon), dynamic_auc (cumulative/dynamic, averaged over the times with the
    decrease in survival as weights; Lambert and Chevret 2016) and integrated_brier (Graf 1999). Censoring weights are computed once
    from all patients, not per resample. With one fold, the values equal those of scikit-survival, which does not support folds and
    takes 10 to 500 times as long per resample.
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
    """Compute MEASURES with intervals over patients, widened for refitting if there are folds.

    Measures that are undefined for these patients are omitted (see `explain_undefined`).
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
    """Count the comparable pairs of a concordance per repeat; for Uno's C, only those up to the horizon."""
    unweighted = replace(predictions, uncensored=(predictions.uncensored > 0).astype(np.float64))
    return round(float(_sum_pairs(unweighted, uno=uno)[0].sum()) / predictions.risk.shape[1])


def list_measures(predictions: OutOfFold) -> list[str]:
    """List those of MEASURES that are defined for these patients."""
    rows = np.arange(len(predictions.time))
    asked = MEASURES if len(predictions.times) > 1 else MEASURES[:2]
    return [name for name in asked if not np.isnan(prepare_measure(name, predictions)(rows))]


def explain_undefined(predictions: OutOfFold) -> list[Note]:
    """Warn about each of MEASURES that is undefined for these patients, with the reason."""
    undefined = [name for name in MEASURES if name not in list_measures(predictions)]
    if undefined and np.ptp(predictions.time) == 0:
        names = ", ".join(_NAMES[name] for name in undefined)
        return [warn(f"not computed: {names}, as all times are equal ({predictions.time[0]:g})")]
    lacking = {
        "harrell_c": "no test fold has an event before another patient's time",
        "uno_c": "no test fold has an event, before another patient's time, with a defined censoring weight",
        "dynamic_auc": "no test fold has both a patient with the event and one without it at each of the times",
        "integrated_brier": "fewer than two times can be evaluated",
    }
    if len(predictions.times) < 2:
        lacking["dynamic_auc"] = lacking["integrated_brier"]
    return [warn(f"not computed: {_NAMES[name]}, as {lacking[name]}") for name in undefined]


def compare_outcome(name: str, first: OutOfFold, second: OutOfFold, *, draws: int = 2000, seed: int = 0) -> Difference:
    """Compare one of MEASURES between two models, first minus second, on the same resamples; widened as in `measure_outcome`."""
    measures = (prepare_measure(name, first), prepare_measure(name, second))
    rows, zeros = np.arange(len(first.time)), np.zeros(len(first.time), dtype=np.int64)

    def measure(rows: NDArray, which: NDArray) -> float:
        return measures[int(which[0])](rows)

    def subtract(columns: NDArray[np.int64]) -> Measure:
        minuend, subtrahend = (prepare_measure(name, _take_columns(predictions, columns)) for predictions in (first, second))
        return lambda rows: minuend(rows) - subtrahend(rows)

    widening = find_widening(subtract, first.fold, first.patients)
    return bootstrap_difference(measure, rows, zeros, zeros + 1, patients=first.patients, draws=draws, seed=seed, widening=widening)


def describe_groups(predictions: OutOfFold, ticks: int = 7) -> dict[str, Any]:
    """Compute Kaplan-Meier curves, numbers at risk and the log-rank test of the low and high risk groups in the first column.

    `p_all` holds the p of every column, which reveals whether the first repeat was lucky.
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
    """Compare predicted (mean over columns) with observed survival at the middle time, in up to four groups.

    Groups have at least LEAST_IN_GROUP patients; returns None without times or with too few patients for two groups.
    """
    groups = min(_MOST_GROUPS, len(predictions.time) // LEAST_IN_GROUP)
    if not len(predictions.times) or groups < 2:
        return None
    middle = len(predictions.times) // 2
    predicted, horizon = predictions.survival[:, :, middle].mean(axis=1), float(predictions.times[middle])
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
    """Compute the time-dependent AUC at each time, over all columns; None without times."""
    if not len(predictions.times):
        return None
    return {"times": predictions.times, "auc": _prepare_areas(predictions)(np.ones(len(predictions.time)))}


def _take_columns(predictions: OutOfFold, columns: NDArray[np.int64]) -> OutOfFold:
    selected = {name: getattr(predictions, name)[:, columns] for name in ("fold", "risk", "high", "uncensored", "survival")}
    return replace(predictions, **selected)


def _list_folds(fold: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for value in np.unique(fold):
        yield np.flatnonzero(fold == value)


def _sum_pairs(predictions: OutOfFold, *, uno: bool) -> tuple[Floats, Floats]:
    """Sum the weights of comparable and of concordant pairs, n x n, over columns and folds."""
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
    """Compute each patient's integrated Brier loss (n), weighted for censoring; the mean is the score."""
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
    # Each time is weighted by the decrease in survival since the previous one.
    falls = -np.diff(np.append(1.0, kaplan_meier(predictions.time, predictions.event).at(predictions.times)))

    def measure(rows: NDArray[np.int64]) -> float:
        counts = np.bincount(rows, minlength=len(predictions.time)).astype(np.float64)
        return float(areas(counts) @ falls / falls.sum()) if falls.sum() > 0 else float("nan")

    return measure


def _prepare_areas(predictions: OutOfFold) -> Callable[[Floats], Floats]:
    """Return the AUC at each time (T) as a function of how often each patient counts in a resample (n)."""
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
    """Choose round tick times from 0 to at most `end`."""
    if end <= 0:
        return np.array([0.0])
    rough = end / max(count - 1, 1)
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return np.arange(0.0, end * 1.0001, step)
