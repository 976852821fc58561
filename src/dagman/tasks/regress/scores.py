"""Measures of a regression with intervals and paired differences between models.

R², MAE and RMSE assess each item by itself and pool the items of all folds. Spearman's ρ ranks items only within a fold: the mean
of a training part is highest where the mean of its test part is lowest, so ranking across folds would make a useless model seem
worse than chance (as for the AUC, see `evaluation.auc`).

Notation: n items, R columns (one per repeat and draw). Predictions are n R; `folds` (n R) holds the test fold of each item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dagman.evaluation.results import Comparison, Measurement
from dagman.evaluation.statistics import Difference, Interval, Metric, bootstrap_difference, bootstrap_interval, find_widening

Floats = NDArray[np.float64]

MEASURES = ("r2", "mae", "rmse", "spearman")
COMPARED = ("r2", "mae")
"""Measures whose differences between models are tested, the main one first."""
_LEAST = 1e-12
"""Lower bound of errors before taking logarithms; smaller errors are due to rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """Out-of-fold predictions of one model, method and subset, for the tested items only."""

    model: str
    method: str
    subset: str
    values: Floats
    "n"
    patients: NDArray
    predicted: Floats
    "n R"
    folds: NDArray[np.int64]
    "n R"


def measure_numbers(one: Predicted, *, resamples: int = 2000, seed: int = 0) -> list[Measurement]:
    """Compute every measure, averaged over repeats, with its interval over patients, widened for refitting if there are folds.

    Errors and 1 - R² are widened on a logarithmic scale; otherwise a few large errors could move the other end to 0.
    """
    return [
        Measurement(
            name=name, model=one.model, method=one.method, subset=one.subset, interval=_estimate(name, one, resamples, seed)
        )
        for name in MEASURES
    ]


def compare_numbers(scored: Sequence[Predicted], *, resamples: int = 2000, seed: int = 0) -> list[Comparison]:
    """Compare the first model with each other one by the paired bootstrap, for every method and subset that both have."""
    return [
        Comparison(
            name=name,
            first=first.model,
            second=second.model,
            method=first.method,
            subset=first.subset,
            difference=_subtract(name, first, second, resamples, seed),
        )
        for first, second in combinations(scored, 2)
        if first.model == scored[0].model != second.model and (first.method, first.subset) == (second.method, second.subset)
        for name in COMPARED
    ]


def prepare_measure(name: str, one: Predicted) -> Metric:
    """Return one of MEASURES as a function of the rows of items in a resample; NaN if undefined."""
    if name == "spearman":
        return _prepare_spearman(one.values, one.predicted, one.folds)
    return lambda rows: _measure_pooled(name, one.values[rows], one.predicted[rows])


def _estimate(name: str, one: Predicted, resamples: int, seed: int) -> Interval:
    prepare = prepare_measure if name == "spearman" else _prepare_log_error
    rows = np.arange(len(one.values))
    interval = bootstrap_interval(
        prepare(name, one),
        rows,
        patients=one.patients,
        draws=resamples,
        seed=seed,
        widening=find_widening(lambda columns: prepare(name, _take_columns(one, columns)), one.folds, one.patients),
        limits=(-1.0, 1.0) if name == "spearman" else (-np.inf, np.inf),
    )
    if name == "spearman":
        return interval
    low, high = np.exp([interval.low, interval.high]).tolist()
    ends = (1 - high, 1 - low) if name == "r2" else (low, high)
    return replace(interval, value=prepare_measure(name, one)(rows), low=ends[0], high=ends[1])


def _prepare_log_error(name: str, one: Predicted) -> Metric:
    """Return the logarithm of an error, or of 1 - R², as a function of rows of items."""
    measure = prepare_measure(name, one)

    def log_error(rows: NDArray[np.int64]) -> float:
        value = measure(rows)
        return float(np.log(max(1 - value if name == "r2" else value, _LEAST))) if np.isfinite(value) else float("nan")

    return log_error


def _take_columns(one: Predicted, columns: NDArray[np.int64]) -> Predicted:
    return replace(one, predicted=one.predicted[:, columns], folds=one.folds[:, columns])


def _measure_pooled(name: str, values: Floats, predicted: Floats) -> float:
    """Compute the mean of a measure over columns; R² is NaN if all values are equal."""
    off = values[:, None] - predicted
    if name == "mae":
        return float(np.abs(off).mean())
    squares = np.mean(off**2, axis=0)
    if name == "rmse":
        return float(np.sqrt(squares).mean())
    variance = float(np.var(values))
    return 1 - float(squares.mean()) / variance if variance > 0 else float("nan")


def _prepare_spearman(values: Floats, predicted: Floats, folds: NDArray[np.int64]) -> Metric:
    """Prepare the mean rank correlation over folds, weighted by their items; folds in which it is undefined are skipped."""
    groups = [
        (np.flatnonzero(folds[:, column] == fold), column)
        for column in range(folds.shape[1])
        for fold in np.unique(folds[folds[:, column] >= 0, column])
    ]
    places = np.concatenate([members for members, _ in groups])
    starts = np.cumsum([0, *(len(members) for members, _ in groups[:-1])])
    sizes = [len(members) for members, _ in groups]
    truth = _Ranking(values[places], starts, sizes)
    ranked = _Ranking(np.concatenate([predicted[members, column] for members, column in groups]), starts, sizes)

    def measure(rows: NDArray[np.int64]) -> float:
        counts = np.bincount(rows, minlength=len(values)).astype(np.float64)[places]
        total = np.add.reduceat(counts, starts)
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = (
                ranks - np.repeat(np.add.reduceat(counts * ranks, starts) / total, sizes)
                for ranks in (truth.rank(counts), ranked.rank(counts))
            )
            spread = np.sqrt(np.add.reduceat(counts * first**2, starts) * np.add.reduceat(counts * second**2, starts))
            correlations = np.add.reduceat(counts * first * second, starts) / spread
        known = spread > 1e-9
        return float(np.average(correlations[known], weights=total[known])) if known.any() else float("nan")

    return measure


class _Ranking:
    """Midranks within groups of items that may count several times; items are sorted only once."""

    def __init__(self, numbers: Floats, starts: NDArray[np.int64], sizes: Sequence[int]) -> None:
        group = np.repeat(np.arange(len(sizes)), sizes)
        self.order = np.lexsort((numbers, group))
        ordered, own = numbers[self.order], group[self.order]
        new = np.append(True, (np.diff(ordered) != 0) | (np.diff(own) != 0))
        firsts = np.flatnonzero(new)
        tie = np.cumsum(new) - 1
        self.first, self.last = firsts[tie], np.append(firsts[1:], len(ordered))[tie]
        self.start = starts[own]

    def rank(self, counts: Floats) -> Floats:
        """Rank the items, in their order: the count of lower items in the group, plus half of the count of ties."""
        below = np.append(0.0, np.cumsum(counts[self.order]))
        ranks = np.empty(len(counts))
        ranks[self.order] = (below[self.first] + below[self.last]) / 2 - below[self.start]
        return ranks


def _subtract(name: str, first: Predicted, second: Predicted, resamples: int, seed: int) -> Difference:
    measures = (prepare_measure(name, first), prepare_measure(name, second))
    rows, zeros = np.arange(len(first.values)), np.zeros(len(first.values), dtype=np.int64)

    def subtract(columns: NDArray[np.int64]) -> Metric:
        minuend, subtrahend = (prepare_measure(name, _take_columns(one, columns)) for one in (first, second))
        return lambda rows: minuend(rows) - subtrahend(rows)

    return bootstrap_difference(
        lambda rows, which: measures[int(which[0])](rows),
        rows,
        zeros,
        zeros + 1,
        patients=first.patients,
        draws=resamples,
        seed=seed,
        widening=find_widening(subtract, first.folds, first.patients),
    )
