"""Classification metrics over n items. Labels are codes 0..K-1; binary scores are those of class 1.

A metric that is undefined (for example, if only one class occurs) is NaN, so that the bootstrap can count and skip it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from dagman.evaluation.statistics import LEAST_IN_GROUP

Floats = NDArray[np.float64]


def measure_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Compute the area under the ROC curve of binary labels (n) and scores (n) from ranks; ties count half (Mann-Whitney)."""
    positive = np.asarray(labels) > 0
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def measure_balanced_accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Compute the mean recall over the classes that occur."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if not len(labels):
        return float("nan")
    return float(np.mean([_recall(labels, predicted, code) for code in np.unique(labels)]))


def count_confusions(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Compute the K x K confusion matrix: rows are true classes, columns are predicted classes."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predicted)), 1)
    return matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Predicted and observed shares in bins of predicted probability; empty if there are too few items for two bins."""

    predicted: Floats
    observed: Floats
    counts: NDArray[np.int64]
    error: float
    "Expected calibration error: mean absolute difference, weighted by counts (Naeini et al., AAAI 2015); NaN without bins."


def bin_reliability(labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 10, least: int = LEAST_IN_GROUP) -> Reliability:
    """Compute the reliability of binary probabilities (n) in up to `bins` bins with equally many items, at least `least`.

    Ties stay in one bin. Bins of equal width, the usual choice, can hold a single item, whose observed share is 0 or 1 regardless
    of the prediction.
    """
    positive = np.asarray(labels) > 0
    probabilities = np.asarray(probabilities, dtype=np.float64)
    bins = min(bins, len(probabilities) // least)
    if bins < 2:
        empty = np.empty(0)
        return Reliability(predicted=empty, observed=empty, counts=empty.astype(np.int64), error=float("nan"))
    bin_of = np.searchsorted(np.sort(probabilities), probabilities) * bins // len(probabilities)
    counts = np.bincount(bin_of, minlength=bins)
    filled = counts > 0
    predicted = np.bincount(bin_of, weights=probabilities, minlength=bins)[filled] / counts[filled]
    observed = np.bincount(bin_of, weights=positive, minlength=bins)[filled] / counts[filled]
    error = float(np.sum(np.abs(predicted - observed) * counts[filled]) / len(positive))
    return Reliability(predicted=predicted, observed=observed, counts=counts[filled], error=error)


def trace_roc(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Return the ROC curve as (false positive rates, true positive rates), from (0, 0) to (1, 1); NaN if undefined."""
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
