"""The area under the ROC curve of out-of-fold scores: estimate, DeLong's covariance and test, and the curve itself.

The models of different folds have no common scale, and ranking items across folds makes a useless model seem worse than chance.
The AUC is therefore the share of correctly ordered (positive, negative) pairs of items that the same model scored: pairs are
counted within each fold and column, then summed. With one fold and one column this is the ordinary AUC with the covariance of
DeLong (Biometrics 1988), or of Obuchowski (Biometrics 1997) if patients have several items. Intervals of out-of-fold scores are
widened, because models trained on other patients would differ (decision 0022).

Notation: n items, R columns (one per repeat and draw), M models. `folds` is n R: the fold in which an item was tested, -1 for none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from dagman.evaluation.classification_metrics import trace_roc
from dagman.evaluation.statistics import (
    FEWEST_PATIENTS,
    REFITTING,
    Difference,
    Interval,
    correct_for_refitting,
    draw_samples,
    list_divisions,
    rows_of_patients,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RocBand:
    """An ROC curve on a grid of false positive rates, with a pointwise confidence band."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    low: Floats
    high: Floats


def prepare_auc(labels: ArrayLike, scores: ArrayLike, folds: ArrayLike | None = None) -> Callable[[ArrayLike], float]:
    """Prepare the AUC within folds as a fast function of how often each item counts in a resample (n).

    The function returns NaN if no fold tests items of both classes.

    Args:
        labels: n; positive if above 0.
        scores: n or n R.
        folds: n R; None for a single fold.
    """
    positive, scores, folds = _arrange(labels, scores, folds)
    items, starts, ends, tie_starts, tie_ends = [], [], [], [], []
    length = 0
    for column, members in _list_folds(folds):
        # Sorted by score; for each item, record where its fold and its group of ties begin and end in the concatenated arrays.
        ranked = scores[members, column]
        order = np.argsort(ranked, kind="stable")
        ranked = ranked[order]
        items.append(members[order])
        starts.append(np.full(len(members), length))
        ends.append(np.full(len(members), length + len(members)))
        tie_starts.append(length + np.searchsorted(ranked, ranked, side="left"))
        tie_ends.append(length + np.searchsorted(ranked, ranked, side="right"))
        length += len(members)
    if not length:
        return lambda counts: float("nan")
    order_of_items = np.concatenate(items)
    first, last, tie_first, tie_last = (np.concatenate(bounds) for bounds in (starts, ends, tie_starts, tie_ends))

    def measure(counts: ArrayLike) -> float:
        weights = np.asarray(counts, dtype=np.float64)[order_of_items]
        ones, zeros = weights * positive[order_of_items], weights * ~positive[order_of_items]
        below = np.append(0.0, np.cumsum(zeros))
        pairs = float(np.sum(ones * (below[last] - below[first])))
        right = float(np.sum(ones * ((below[tie_first] + below[tie_last]) / 2 - below[first])))
        return right / pairs if pairs > 0 else float("nan")

    return measure


def count_pairs(labels: ArrayLike, folds: ArrayLike) -> int:
    """Count the (positive, negative) pairs that are compared, over all folds and columns (`folds` n R)."""
    positive, _, folds = _arrange(labels, np.zeros(np.shape(folds)), folds)
    return sum(int(positive[members].sum()) * int((~positive[members]).sum()) for _, members in _list_folds(folds))


def estimate_auc(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    folds: ArrayLike | None = None,
    patients: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """Estimate the AUC with DeLong's normal interval, widened for refitting if there are folds and truncated to [0, 1].

    There is no interval (NaN) with fewer than FEWEST_PATIENTS, or if the variance is 0.

    Args:
        labels: n; positive if above 0.
        scores: n or n R.
        folds: n R; None for a single fold.
        patients: Patient of each item; None if each item is a patient.
        level: Confidence level.
    """
    scores = np.asarray(scores, dtype=np.float64)
    areas, covariance, count, how = _refit_covariance(labels, scores[..., None], folds, patients)
    value, low, high = float(areas[0]), float("nan"), float("nan")
    if count < FEWEST_PATIENTS:
        how = f"no interval: too few patients ({count})"
    elif covariance[0, 0] > _ROUNDING:
        reach = norm.ppf(0.5 + level / 2) * math.sqrt(covariance[0, 0])
        low, high = np.clip([value - reach, value + reach], 0.0, 1.0).tolist()
    elif not np.isnan(covariance[0, 0]):
        how = "no interval: DeLong's variance is 0"
    else:
        how = "undefined on these patients"
    return Interval(value=value, low=low, high=high, level=level, items=len(np.asarray(labels)), patients=count, how=how)


def compare_auc(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    folds: ArrayLike | None = None,
    patients: ArrayLike | None = None,
    level: float = 0.95,
) -> Difference:
    """Compare two AUCs on the same items with DeLong's interval and test, both widened for refitting if there are folds.

    `first` and `second` are scores, n or n R; the other arguments are those of `estimate_auc`. The difference equals that of the
    two estimates. With fewer than FEWEST_PATIENTS there is neither an interval nor p (NaN).
    """
    scores = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)], axis=-1)
    areas, covariance, count, how = _refit_covariance(labels, scores, folds, patients)
    value = float(areas[0] - areas[1])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    # If both models rank alike, rounding leaves a variance of about 1e-18, of either sign.
    if count < FEWEST_PATIENTS:
        reach, p, how = float("nan"), float("nan"), f"no interval: too few patients ({count})"
    elif variance > _ROUNDING:
        error = math.sqrt(variance)
        reach, p, how = norm.ppf(0.5 + level / 2) * error, float(2 * norm.sf(abs(value) / error)), f"paired {how}"
    else:
        same = not np.isnan(variance) and abs(value) < 1e-12
        reach, p, how = float("nan"), 1.0 if same else float("nan"), "no interval: both models rank all pairs identically"
        if not same:
            how = "no interval: DeLong's variance is 0" if not np.isnan(variance) else "undefined on these patients"
    return Difference(
        value=value,
        low=float(value - reach),
        high=float(value + reach),
        level=level,
        items=len(np.asarray(labels)),
        patients=count,
        how=how,
        p=p,
    )


def delong_covariance(
    labels: ArrayLike, scores: ArrayLike, *, folds: ArrayLike | None = None, patients: ArrayLike | None = None
) -> tuple[Floats, Floats, int]:
    """Compute the AUCs of M models, their M M covariance, and the number of patients.

    Placements are computed from midranks (Sun and Xu, IEEE SPL 2014) within each fold and summed over each patient's items and
    columns. Undefined values are NaN. The models are taken as given; `estimate_auc` and `compare_auc` add the variance due to
    refitting.

    Args:
        labels: n; positive if above 0.
        scores: n M, or n R M with `folds`.
        folds: n R; None for a single fold.
        patients: Patient of each item; None if each item is a patient.
    """
    scores = np.asarray(scores, dtype=np.float64)
    scores = scores[:, None, :] if scores.ndim == 2 else scores
    positive, _, folds = _arrange(labels, scores[:, :, 0], folds)
    rows, models = rows_of_patients(np.arange(len(positive)) if patients is None else patients), scores.shape[2]
    right, pairs = np.zeros((len(positive), models)), np.zeros(len(positive))
    for column, members in _list_folds(folds):
        ones, zeros = members[positive[members]], members[~positive[members]]
        if not len(ones) or not len(zeros):
            continue
        # The placement of an item is the number of pairs in its fold in which it is ordered correctly.
        ranks = rankdata(scores[members, column], axis=0)
        right[ones] += ranks[positive[members]] - rankdata(scores[ones, column], axis=0)
        right[zeros] += len(ones) - (ranks[~positive[members]] - rankdata(scores[zeros, column], axis=0))
        pairs[ones] += len(zeros)
        pairs[zeros] += len(ones)
    total = float(pairs[positive].sum())
    undefined = np.full((models, models), np.nan)
    if not total:
        return np.full(models, np.nan), undefined, len(rows)
    areas = right[positive].sum(axis=0) / total
    off = (right - pairs[:, None] * areas) / total
    tested = pairs > 0
    ones = np.stack([off[r][positive[r]].sum(axis=0) for r in rows])
    zeros = np.stack([off[r][~positive[r]].sum(axis=0) for r in rows])
    with_ones = sum(bool((positive[r] & tested[r]).any()) for r in rows)
    with_zeros = sum(bool((~positive[r] & tested[r]).any()) for r in rows)
    if with_ones < 2 or with_zeros < 2:
        return areas, undefined, len(rows)
    cross = len(rows) / (len(rows) - 1) * ones.T @ zeros
    within = with_ones / (with_ones - 1) * ones.T @ ones + with_zeros / (with_zeros - 1) * zeros.T @ zeros
    return areas, within + cross + cross.T, len(rows)


def trace_roc_band(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    folds: ArrayLike | None = None,
    patients: ArrayLike,
    level: float = 0.95,
    draws: int = 500,
    seed: int = 0,
    points: int = 101,
) -> RocBand:
    """Trace the ROC curve on an even grid of `points`, with a pointwise percentile band over resampled patients.

    The curves of folds and columns are averaged vertically, weighted by their numbers of pairs, so that the area under the curve
    is the AUC of the tables.
    """
    positive, scores, folds = _arrange(labels, scores, folds)
    grid = np.linspace(0.0, 1.0, points)

    def trace(positive: NDArray, scores: NDArray, folds: NDArray) -> Floats:
        height, total = np.zeros(points), 0
        for column, members in _list_folds(folds):
            pairs = int(positive[members].sum()) * int((~positive[members]).sum())
            if pairs:
                false_rate, true_rate = trace_roc(positive[members], scores[members, column])
                # Where several points have the same rate, np.interp takes the last one, the upper end of the step.
                height += pairs * np.interp(grid, false_rate, true_rate)
                total += pairs
        return height / total if total else np.full(points, np.nan)

    inputs, rows = [positive, scores, folds], rows_of_patients(patients)
    curves = [trace(*sample) for sample in draw_samples(inputs, rows, draws, seed)]
    known = np.stack([curve for curve in curves if not np.isnan(curve).any()] or [np.full(points, np.nan)])
    low, high = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return RocBand(false_positive_rate=grid, true_positive_rate=trace(*inputs), low=low, high=high)


def _refit_covariance(
    labels: ArrayLike, scores: Floats, folds: ArrayLike | None, patients: ArrayLike | None
) -> tuple[Floats, Floats, int, str]:
    """Like `delong_covariance`, with the method in words; with folds, the mean over divisions times `correct_for_refitting`."""
    areas, covariance, count = delong_covariance(labels, scores, folds=folds, patients=patients)
    if folds is None:
        return areas, covariance, count, "DeLong over patients"
    scores = scores[:, None, :] if scores.ndim == 2 else scores
    given = np.asarray(folds).reshape(scores.shape[:2])
    divisions = list_divisions(given)
    factor = correct_for_refitting(max(number for number, _ in divisions), len(divisions))
    if factor == 1:
        return areas, covariance, count, "DeLong over patients"
    single = [delong_covariance(labels, scores[:, own], folds=given[:, own], patients=patients)[1] for _, own in divisions]
    known = [matrix for matrix in single if not np.isnan(matrix).any()]
    average = np.mean(known, axis=0) if known else covariance
    return areas, factor * average, count, f"DeLong over patients, {REFITTING}"


_ROUNDING = 1e-15
"""Variances below this are rounding errors."""


def _arrange(labels: ArrayLike, scores: ArrayLike, folds: ArrayLike | None) -> tuple[NDArray[np.bool_], Floats, NDArray]:
    """Return positives n, scores n R and folds n R; without folds, all items are in one fold."""
    scores = np.asarray(scores, dtype=np.float64)
    scores = scores[:, None] if scores.ndim == 1 else scores
    folds = np.zeros(scores.shape, dtype=np.int64) if folds is None else np.asarray(folds).reshape(scores.shape)
    return np.asarray(labels) > 0, scores, folds


def _list_folds(folds: NDArray) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the column and the members of every fold of every column."""
    for column in range(folds.shape[1]):
        for fold in np.unique(folds[folds[:, column] >= 0, column]):
            yield column, np.flatnonzero(folds[:, column] == fold)
