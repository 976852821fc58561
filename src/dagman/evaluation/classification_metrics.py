"""How good scores of classes are: n items; labels are codes 0..K-1, scores of a binary task are those of class 1.

A measure that is undefined on its items (one class only, say) is NaN, so that a resampling can count and skip it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from dagman.evaluation.statistics import LEAST_IN_GROUP

Floats = NDArray[np.float64]


def measure_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve of binary labels (n) and scores (n), by ranks; ties count half (Mann-Whitney)."""
    positive = np.asarray(labels) > 0
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def measure_balanced_accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Mean over the classes that occur of the share that is predicted right."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if not len(labels):
        return float("nan")
    return float(np.mean([_recall(labels, predicted, code) for code in np.unique(labels)]))


def count_confusions(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Confusion matrix, K x K: rows are true classes, columns predicted ones."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predicted)), 1)
    return matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Predicted against observed shares in bins of predicted probability; no bins where the items are too few for two."""

    predicted: Floats
    observed: Floats
    counts: NDArray[np.int64]
    error: float
    "Expected calibration error: mean distance of the two, weighted by counts (Naeini et al., AAAI 2015); NaN without bins."


def bin_reliability(labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 10, least: int = LEAST_IN_GROUP) -> Reliability:
    """Reliability of binary probabilities (n) in up to `bins` bins of equal numbers of items, `least` at least; ties stay together.

    In bins of equal width (the usual choice) one item at an end makes a point of its own, at 0 or 1 whatever was predicted.
    """
    positive = np.asarray(labels) > 0
    probabilities = np.asarray(probabilities, dtype=np.float64)
    bins = min(bins, len(probabilities) // least)
    if bins < 2:
        none = np.empty(0)
        return Reliability(predicted=none, observed=none, counts=none.astype(np.int64), error=float("nan"))
    places = np.searchsorted(np.sort(probabilities), probabilities) * bins // len(probabilities)
    counts = np.bincount(places, minlength=bins)
    filled = counts > 0
    predicted = np.bincount(places, weights=probabilities, minlength=bins)[filled] / counts[filled]
    observed = np.bincount(places, weights=positive, minlength=bins)[filled] / counts[filled]
    error = float(np.sum(np.abs(predicted - observed) * counts[filled]) / len(positive))
    return Reliability(predicted=predicted, observed=observed, counts=counts[filled], error=error)


def trace_roc(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Points of the ROC curve, (false positive rates, true positive rates), from (0, 0) to (1, 1); NaN if undefined."""
    positive, scores = np.asarray(labels) > 0, np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True) if len(scores) else np.array([], dtype=bool)
    hits = np.cumsum(positive[order])[last_of_tie]
    false_alarms = np.cumsum(~positive[order])[last_of_tie]
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return np.array([np.nan]), np.array([np.nan])
    return np.append(0.0, false_alarms / n_negative), np.append(0.0, hits / n_positive)


def _recall(labels: NDArray, predicted: NDArray, code: int) -> float:
    of_class = labels == code
    return float(np.mean(predicted[of_class] == code)) if of_class.any() else float("nan")
