"""How sure a number is, and whether two models differ: intervals over patients, paired comparisons, corrections.

Items of one patient are not independent, so resampling draws patients with all their items, and DeLong's variance is
taken over patients (Obuchowski, Biometrics 1997; with one item a patient it is DeLong et al., Biometrics 1988).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from dagman.evaluation.classification_metrics import trace_roc
from dagman.randomness import generator
from dagman.records.counts import count_noun

Floats = NDArray[np.float64]
Metric = Callable[..., float]
"""A measure of arrays whose first axis is items; NaN where it is undefined."""
FEWEST_PATIENTS = 5
"""Fewer have too few resamples for an interval: two patients give three, and bounds that say nothing. [ours]"""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its confidence interval, and how that came to be."""

    value: float
    low: float
    high: float
    level: float
    items: int
    patients: int
    how: str
    "Method in words, with resamples that were skipped and why."


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """First model minus second on the same items; p is two-sided and not corrected for other comparisons."""

    p: float


@dataclass(frozen=True, kw_only=True, eq=False)
class RocBand:
    """A ROC curve on a grid of false positive rates, with a pointwise band."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    low: Floats
    high: Floats


def bootstrap_interval(
    metric: Metric, *arrays: ArrayLike, patients: ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The BCa bootstrap interval of `metric(*arrays)` over patients (Efron, JASA 1987).

    arrays: each with items first. Resamples on which the metric is NaN (one class only) are skipped and counted.
    Where bias or acceleration cannot be had, the plain percentile interval is given, and `how` says so; with fewer than
    FEWEST_PATIENTS there is none (NaN).
    """
    inputs, rows = [np.asarray(array) for array in arrays], _rows_of_patients(patients)
    value = float(metric(*inputs))
    values = _resample(metric, inputs, rows, draws, seed)
    low, high, how = _bound(metric, inputs, rows, value, values, level)
    items = len(inputs[0])
    return Interval(value=value, low=low, high=high, level=level, items=items, patients=len(rows), how=how)


def bootstrap_difference(
    metric: Metric,
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    patients: ArrayLike,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """`metric(labels, first) - metric(labels, second)` with a BCa interval, both models on the same resamples.

    p is twice the smaller share of resampled differences on either side of 0, each with one more than was counted
    (Davison and Hinkley 1997, 4.4), so it is never 0.
    """

    def subtract(labels: NDArray, first: NDArray, second: NDArray) -> float:
        return metric(labels, first) - metric(labels, second)

    inputs, rows = [np.asarray(labels), np.asarray(first), np.asarray(second)], _rows_of_patients(patients)
    value = float(subtract(*inputs))
    values = _resample(subtract, inputs, rows, draws, seed)
    low, high, how = _bound(subtract, inputs, rows, value, values, level)
    known = values[~np.isnan(values)]
    smaller = min(np.sum(known <= 0), np.sum(known >= 0))
    p = float(min(1.0, 2 * (smaller + 1) / (len(known) + 1))) if len(known) and len(rows) >= FEWEST_PATIENTS else float("nan")
    items = len(inputs[0])
    return Difference(value=value, low=low, high=high, level=level, items=items, patients=len(rows), how=f"paired {how}", p=p)


def estimate_auc(labels: ArrayLike, scores: ArrayLike, *, patients: ArrayLike | None = None, level: float = 0.95) -> Interval:
    """AUC with DeLong's normal interval, cut to [0, 1]; over patients where they are given."""
    areas, covariance, count = measure_auc_covariance(labels, np.asarray(scores)[:, None], patients=patients)
    reach = norm.ppf(0.5 + level / 2) * math.sqrt(covariance[0, 0])
    value = float(areas[0])
    # np.clip keeps NaN, which min and max would turn into a bound.
    low, high = np.clip([value - reach, value + reach], 0.0, 1.0).tolist()
    return Interval(value=value, low=low, high=high, level=level, items=len(np.asarray(labels)), patients=count, how="DeLong")


def compare_auc(
    labels: ArrayLike, first: ArrayLike, second: ArrayLike, *, patients: ArrayLike | None = None, level: float = 0.95
) -> Difference:
    """Difference of two AUCs on the same items with DeLong's interval and test; over patients where they are given."""
    areas, covariance, count = measure_auc_covariance(labels, np.stack([first, second], axis=1), patients=patients)
    value = float(areas[0] - areas[1])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    # Rounding leaves a few 1e-18 of either sign between two models with the same ranks.
    error = math.sqrt(variance) if variance > 1e-15 else variance * 0
    reach = norm.ppf(0.5 + level / 2) * error
    same = 1.0 if value == 0 else float("nan")
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else same
    return Difference(
        value=value,
        low=float(value - reach),
        high=float(value + reach),
        level=level,
        items=len(np.asarray(labels)),
        patients=count,
        how="DeLong, paired",
        p=p,
    )


def measure_auc_covariance(
    labels: ArrayLike, scores: ArrayLike, *, patients: ArrayLike | None = None
) -> tuple[Floats, Floats, int]:
    """AUCs of M models (scores n x M), their M x M covariance, and the number of patients.

    Placements by midranks (Sun and Xu, IEEE SPL 2014), summed over each patient's items. NaN if undefined.
    """
    positive, scores = np.asarray(labels) > 0, np.asarray(scores, dtype=np.float64)
    rows = _rows_of_patients(np.arange(len(positive)) if patients is None else patients)
    n_positive, n_negative, models = int(positive.sum()), int((~positive).sum()), scores.shape[1]
    if n_positive < 2 or n_negative < 2:
        return np.full(models, np.nan), np.full((models, models), np.nan), len(rows)
    # Placement: the share of the other class that an item is on the right side of.
    placements = rankdata(scores, axis=0)
    placements[positive] = (placements[positive] - rankdata(scores[positive], axis=0)) / n_negative
    placements[~positive] = 1 - (placements[~positive] - rankdata(scores[~positive], axis=0)) / n_positive
    areas = placements[positive].mean(axis=0)
    off = placements - areas
    ones = np.stack([off[r][positive[r]].sum(axis=0) for r in rows])
    zeros = np.stack([off[r][~positive[r]].sum(axis=0) for r in rows])
    with_ones = sum(bool(positive[r].any()) for r in rows)
    with_zeros = sum(bool((~positive[r]).any()) for r in rows)
    if with_ones < 2 or with_zeros < 2:
        return areas, np.full((models, models), np.nan), len(rows)
    cross = len(rows) / (len(rows) - 1) * ones.T @ zeros / (n_positive * n_negative)
    covariance = (
        with_ones / (with_ones - 1) * ones.T @ ones / n_positive**2
        + with_zeros / (with_zeros - 1) * zeros.T @ zeros / n_negative**2
        + cross
        + cross.T
    )
    return areas, covariance, len(rows)


def trace_roc_band(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    patients: ArrayLike,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    points: int = 101,
) -> RocBand:
    """The ROC curve with a pointwise percentile band over resampled patients, on an even grid of `points`."""
    grid = np.linspace(0.0, 1.0, points)

    def trace(labels: NDArray, scores: NDArray) -> Floats:
        false_rate, true_rate = trace_roc(labels, scores)
        # Of points above one another np.interp takes the last: the upper edge of the step.
        return np.interp(grid, false_rate, true_rate)

    inputs, rows = [np.asarray(labels), np.asarray(scores)], _rows_of_patients(patients)
    curves = [trace(*sample) for sample in _draw_samples(inputs, rows, draws, seed)]
    known = np.stack([curve for curve in curves if not np.isnan(curve).any()] or [np.full(points, np.nan)])
    low, high = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return RocBand(false_positive_rate=grid, true_positive_rate=trace(*inputs), low=low, high=high)


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, Scand. J. Statist. 1979), in the order given; NaN stays and is not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected


def _rows_of_patients(patients: ArrayLike) -> list[NDArray[np.int64]]:
    """Rows of each patient, patients in sorted order, so that the order of rows changes no draw."""
    values, places = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(places, kind="stable")
    return np.split(order, np.cumsum(np.bincount(places, minlength=len(values)))[:-1])


def _draw_samples(inputs: list[NDArray], rows: list[NDArray], draws: int, seed: int) -> Iterator[list[NDArray]]:
    patients = _draw_patients(len(rows), draws, seed)
    # With a row a patient, a draw of patients is one of rows; to join rows one by one would be most of the time.
    single = np.concatenate(rows) if all(len(row) == 1 for row in rows) else None
    for drawn in patients:
        picked = np.concatenate([rows[i] for i in drawn]) if single is None else single[drawn]
        yield [array[picked] for array in inputs]


@lru_cache(maxsize=4)
def _draw_patients(count: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Patients of each resample, `draws` `count`; kept, as a table has hundreds of measures of the same patients."""
    return generator(seed, "bootstrap").integers(count, size=(draws, count))


def _resample(metric: Metric, inputs: list[NDArray], rows: list[NDArray], draws: int, seed: int) -> Floats:
    if len(rows) < FEWEST_PATIENTS:
        # There will be no interval: see `_bound`.
        return np.full(0, np.nan)
    return np.array([metric(*sample) for sample in _draw_samples(inputs, rows, draws, seed)], dtype=np.float64)


def _bound(
    metric: Metric, inputs: list[NDArray], rows: list[NDArray], value: float, values: Floats, level: float
) -> tuple[float, float, str]:
    known = values[~np.isnan(values)]
    skipped = f", {count_noun(len(values) - len(known), 'undefined one')} skipped" if len(known) < len(values) else ""
    if len(rows) < FEWEST_PATIENTS:
        return float("nan"), float("nan"), f"no interval: too few patients to resample ({len(rows)})"
    if not len(known) or math.isnan(value):
        return float("nan"), float("nan"), "undefined on these patients"
    ends = np.array([0.5 - level / 2, 0.5 + level / 2])
    bias = norm.ppf(np.mean(known < value) + np.mean(known == value) / 2)
    acceleration = _accelerate(metric, inputs, rows)
    if np.isfinite(bias) and np.isfinite(acceleration):
        shifted = bias + norm.ppf(ends)
        ends = norm.cdf(bias + shifted / (1 - acceleration * shifted))
        method = "BCa bootstrap"
    else:
        method = "percentile bootstrap (BCa undefined)"
    low, high = np.quantile(known, ends)
    return float(low), float(high), f"{method} over patients, {len(values)} resamples{skipped}"


def _accelerate(metric: Metric, inputs: list[NDArray], rows: list[NDArray]) -> float:
    """Skewness of the metric's jackknife over patients, a sixth of it; NaN if it does not vary."""
    keep = np.ones(len(inputs[0]), dtype=bool)
    left = []
    for of_patient in rows:
        keep[of_patient] = False
        left.append(metric(*[array[keep] for array in inputs]))
        keep[of_patient] = True
    known = np.array(left)[~np.isnan(left)]
    if len(known) < 2:
        return float("nan")
    off = known.mean() - known
    scale = float(np.sum(off**2))
    return float(np.sum(off**3) / (6 * scale**1.5)) if scale > 0 else float("nan")
