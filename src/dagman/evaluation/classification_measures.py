"""What is said of a classification: measures with intervals, paired differences, curves; repeats and draws as columns.

Letters: n items, R repeats and draws, K classes. Scores are n R K, NaN for an item that a column did not test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from dagman.evaluation.classification_metrics import bin_reliability, count_confusions
from dagman.evaluation.measures import Measure, register_measure
from dagman.evaluation.results import Comparison, Measurement
from dagman.evaluation.statistics import (
    Metric,
    bootstrap_difference,
    bootstrap_interval,
    compare_auc,
    correct_holm,
    trace_roc_band,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Scores of one model by one method from one subset: `scores` n R K of the tested items alone."""

    model: str
    method: str
    subset: str
    names: tuple[str, ...]
    "Of the tested items."
    labels: NDArray[np.int64]
    patients: NDArray
    scores: Floats

    @property
    def mean_scores(self) -> Floats:
        """Averaged over repeats and draws, n x K."""
        averaged: Floats = self.scores.mean(axis=1)
        return averaged

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return int(self.scores.shape[2])


def measure_scores(scored: Scored, *, resamples: int = 2000, seed: int = 0) -> list[Measurement]:
    """Every measure, as the mean over repeats, with its BCa interval over patients; AUC of several classes is macro."""
    measurements = []
    for name, metric in METRICS.items():
        if metric.binary_only and scored.classes != 2:
            continue
        interval = bootstrap_interval(
            metric.measure, scored.labels, scored.scores, patients=scored.patients, draws=resamples, seed=seed
        )
        measurements.append(
            Measurement(name=name, model=scored.model, method=scored.method, subset=scored.subset, interval=interval)
        )
    return measurements


def compare_scores(found: Sequence[Scored], *, resamples: int = 2000, seed: int = 0) -> list[Comparison]:
    """The first model minus each other one, for every method and subset both have, with p corrected by Holm over all of them.

    Binary AUCs by DeLong over patients, of scores averaged over repeats; the rest by the paired bootstrap.
    """
    made: list[tuple[str, Scored, Scored, Any]] = []
    if not found:
        return []
    for first in (scored for scored in found if scored.model == found[0].model):
        for second in found:
            if second.model != first.model and (second.method, second.subset) == (first.method, first.subset):
                made += [(name, first, second, _compare(name, first, second, resamples, seed)) for name in _list_compared()]
    corrected = correct_holm([difference.p for *_, difference in made])
    return [
        Comparison(
            name=name, first=first.model, second=second.model, method=first.method, subset=first.subset, difference=difference,
            corrected=p,
        )
        for (name, first, second, difference), p in zip(made, corrected, strict=True)
    ]  # fmt: skip


def describe_curves(scored: Scored, *, seed: int = 0) -> dict[str, Any]:
    """Plain numbers for the report, of scores averaged over repeats: confusion matrix; ROC with band and reliability if binary."""
    mean = scored.mean_scores
    found: dict[str, Any] = {
        "model": scored.model,
        "method": scored.method,
        "subset": scored.subset,
        "confusion": count_confusions(scored.labels, mean.argmax(axis=1), scored.classes),
    }
    if scored.classes == 2:
        band = trace_roc_band(scored.labels, mean[:, 1], patients=scored.patients, seed=seed)
        reliability = bin_reliability(scored.labels, mean[:, 1])
        found["roc"] = {
            "false": band.false_positive_rate,
            "true": band.true_positive_rate,
            "low": band.low,
            "high": band.high,
        }
        found["reliability"] = {
            "predicted": reliability.predicted,
            "observed": reliability.observed,
            "counts": reliability.counts,
            "error": reliability.error,
        }
    return found


def measure_mean_auc(labels: NDArray, scores: NDArray) -> float:
    """AUC (macro over classes) averaged over columns; scores n R K. NaN if a class does not occur."""
    codes = range(1, 2) if scores.shape[2] == 2 else range(scores.shape[2])
    areas = []
    for code in codes:
        positive = labels == code
        ones, zeros = int(positive.sum()), int((~positive).sum())
        if not ones or not zeros:
            return float("nan")
        ranks = rankdata(scores[:, :, code], axis=0)[positive].sum(axis=0)
        areas.append((ranks - ones * (ones + 1) / 2) / (ones * zeros))
    return float(np.mean(areas))


def _measure_accuracy(labels: NDArray, scores: NDArray) -> float:
    return float(np.mean(scores.argmax(axis=2) == labels[:, None]))


def _recall(labels: NDArray, scores: NDArray, code: int) -> float:
    of_class = labels == code
    return float(np.mean(scores[of_class].argmax(axis=2) == code)) if of_class.any() else float("nan")


def _measure_sensitivity(labels: NDArray, scores: NDArray) -> float:
    return _recall(labels, scores, 1)


def _measure_specificity(labels: NDArray, scores: NDArray) -> float:
    return _recall(labels, scores, 0)


def _measure_balanced(labels: NDArray, scores: NDArray) -> float:
    return float(np.mean([_recall(labels, scores, code) for code in np.unique(labels)]))


def _measure_brier(labels: NDArray, scores: NDArray) -> float:
    if scores.shape[2] == 2:
        return float(np.mean((scores[:, :, 1] - labels[:, None]) ** 2))
    truth = labels[:, None, None] == np.arange(scores.shape[2])
    return float(np.mean(np.sum((scores - truth) ** 2, axis=2)))


@dataclass(frozen=True, kw_only=True)
class ClassMetric:
    """How a measure is computed: of (labels n, scores n R K), the mean over the R columns.

    binary_only: whether it needs two classes. compared: whether differences between models are tested.
    """

    measure: Metric
    binary_only: bool = False
    compared: bool = False


METRICS: dict[str, ClassMetric] = {
    "auc": ClassMetric(measure=measure_mean_auc, compared=True),
    "accuracy": ClassMetric(measure=_measure_accuracy),
    "balanced_accuracy": ClassMetric(measure=_measure_balanced, compared=True),
    "sensitivity": ClassMetric(measure=_measure_sensitivity, binary_only=True),
    "specificity": ClassMetric(measure=_measure_specificity, binary_only=True),
    "brier": ClassMetric(measure=_measure_brier),
}
"""The measures of a classification, in the order of the tables."""


def register_metric(name: str, metric: ClassMetric, about: Measure) -> None:
    """Add a measure of classifications: how it is computed, and what readers need to know of it."""
    register_measure(name, about)
    METRICS[name] = metric


def _list_compared() -> list[str]:
    return [name for name, metric in METRICS.items() if metric.compared]


def _compare(name: str, first: Scored, second: Scored, resamples: int, seed: int) -> Any:
    if name == "auc" and first.classes == 2:
        return compare_auc(first.labels, first.mean_scores[:, 1], second.mean_scores[:, 1], patients=first.patients)
    return bootstrap_difference(
        METRICS[name].measure, first.labels, first.scores, second.scores, patients=first.patients, draws=resamples, seed=seed
    )
