"""Measures of a classification with intervals, paired differences between models, and curves.

AUC compares the scores of two items, and only within a fold (see `evaluation.auc`). The other measures assess each item by itself,
at a fixed threshold or by its probability, so the items of all folds can be pooled.

Notation: n items, R columns (one per repeat and draw), K classes. Scores are n R K, NaN for items not tested in a column.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman.evaluation.auc import compare_auc, count_pairs, estimate_auc, prepare_auc, trace_roc_band
from dagman.evaluation.classification_metrics import bin_reliability, count_confusions
from dagman.evaluation.measures import Measure, register_measure
from dagman.evaluation.results import Comparison, Measurement
from dagman.evaluation.splits import Indices, Split, Subset, draw_subset
from dagman.evaluation.statistics import (
    Interval,
    Metric,
    bootstrap_difference,
    bootstrap_interval,
    bound_edge,
    find_widening,
    warn_of_few_pairs,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Out-of-fold scores (n R K) of one model, method and subset, for the tested items only."""

    model: str
    method: str
    subset: str
    names: tuple[str, ...]
    "Names of the tested items."
    labels: NDArray[np.int64]
    patients: NDArray
    scores: Floats
    folds: NDArray[np.int64] | None = None
    "n R: the fold in which each item was tested; None: one fold."

    @property
    def mean_scores(self) -> Floats:
        """Scores averaged over repeats and draws, n K."""
        averaged: Floats = self.scores.mean(axis=1)
        return averaged

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return int(self.scores.shape[2])


def score_out_of_fold(
    score: Callable[[Split, Indices, int], Floats],
    *,
    names: Sequence[str],
    patients: NDArray,
    codes: NDArray[np.int64],
    classes: Sequence[str],
    splits: Sequence[Split],
    subset: Subset,
    model: str,
    method: str,
    seed: int = 0,
) -> tuple[Scored, list[dict[str, Any]]]:
    """Compute out-of-fold scores of one model, method and subset over all splits and draws.

    Args:
        score: Given a split, its labelled training items and the number of the draw, returns scores of `split.test` (n K).
        names: Name of each item.
        patients: Patient of each item.
        codes: Label of each item, as an index into `classes`.
        classes: Names of the classes.
        splits: The splits, over all repeats and folds.
        subset: The labelled subset to draw.
        model: Name of the model.
        method: Name of the method.
        seed: Seed of the few-shot draws.

    Returns:
        The scores, and their rows for predictions.csv.
    """
    columns = subset.draws * (1 + max(split.repeat for split in splits))
    scores = np.full((len(names), columns, len(classes)), np.nan)
    folds = np.full((len(names), columns), -1)
    rows: list[dict[str, Any]] = []
    for split, draw in itertools.product(splits, range(subset.draws)):
        train = draw_subset(
            split, codes, patients, share=subset.share, per_class=subset.per_class, seed=seed, draw=draw, classes=classes
        )
        predicted = score(split, train, draw)
        scores[split.test, split.repeat * subset.draws + draw] = predicted
        folds[split.test, split.repeat * subset.draws + draw] = split.fold
        about = {"repeat": split.repeat, "fold": split.fold, "draw": draw, "subset": subset.name, "model": model, "method": method}
        rows += [
            {"item": names[i], "patient": patients[i], **about, "label": classes[codes[i]], **_name_scores(classes, row)}
            for i, row in zip(split.test, predicted, strict=True)
        ]
    tested = ~np.isnan(scores).any(axis=(1, 2))
    scored = Scored(
        model=model,
        method=method,
        subset=subset.name,
        names=tuple(itertools.compress(names, tested)),
        labels=codes[tested],
        patients=patients[tested],
        scores=scores[tested],
        folds=folds[tested],
    )
    return scored, rows


def _name_scores(classes: Sequence[str], scores: NDArray) -> dict[str, float]:
    if len(classes) == 2:
        return {"score": float(scores[1])}
    return {f"score_{name}": float(score) for name, score in zip(classes, scores, strict=True)}


def measure_scores(scored: Scored, *, resamples: int = 2000, seed: int = 0) -> list[Measurement]:
    """Compute every measure, averaged over repeats, with its interval over patients, widened for refitting if there are folds.

    Intervals are DeLong's for the AUC of two classes, and BCa bootstrap intervals otherwise. With more than two classes, the AUC
    is the macro average.
    """
    measurements = []
    for name, metric in METRICS.items():
        if metric.binary_only and scored.classes != 2:
            continue
        interval = _estimate(name, metric, scored, resamples, seed)
        if metric.shares is not None:
            refitted = scored.folds is not None and len(np.unique(scored.folds[scored.folds >= 0])) > 1
            shares = metric.shares(scored.labels, scored.scores)
            interval = bound_edge(interval, shares, scored.patients, refitted=refitted)
        if metric.within_folds and scored.classes == 2:
            interval = warn_of_few_pairs(interval, _count_pairs(scored), "items")
        measurements.append(
            Measurement(name=name, model=scored.model, method=scored.method, subset=scored.subset, interval=interval)
        )
    return measurements


def compare_scores(scores: Sequence[Scored], *, resamples: int = 2000, seed: int = 0) -> list[Comparison]:
    """Compare the first model with each other model, for every method and subset that both have.

    Differences are those of the values of `measure_scores`, tested by DeLong over patients for binary AUCs and by the paired
    bootstrap otherwise. The p-values are uncorrected (see `correct_comparisons`).
    """
    return [
        Comparison(
            name=name,
            first=first.model,
            second=second.model,
            method=first.method,
            subset=first.subset,
            difference=_compare(name, first, second, resamples, seed),
        )
        for first in scores
        for second in scores
        if first.model == scores[0].model != second.model and (first.method, first.subset) == (second.method, second.subset)
        for name in list_compared()
    ]


def describe_curves(scored: Scored, *, seed: int = 0) -> dict[str, Any]:
    """Compute the report's curves: ROC within folds; confusion matrix and reliability of scores averaged over repeats."""
    mean = scored.mean_scores
    curves: dict[str, Any] = {
        "model": scored.model,
        "method": scored.method,
        "subset": scored.subset,
        "confusion": count_confusions(scored.labels, mean.argmax(axis=1), scored.classes),
    }
    if scored.classes == 2:
        band = trace_roc_band(scored.labels, scored.scores[:, :, 1], folds=scored.folds, patients=scored.patients, seed=seed)
        reliability = bin_reliability(scored.labels, mean[:, 1])
        curves["roc"] = {
            "false": band.false_positive_rate,
            "true": band.true_positive_rate,
            "low": band.low,
            "high": band.high,
        }
        if len(reliability.counts):
            curves["reliability"] = {
                "predicted": reliability.predicted,
                "observed": reliability.observed,
                "counts": reliability.counts,
                "error": reliability.error,
            }
    return curves


def measure_mean_auc(labels: NDArray, scores: NDArray, folds: NDArray | None = None) -> float:
    """Compute the AUC within folds over all columns, averaged over classes if more than two.

    Args:
        labels: n codes.
        scores: n R K.
        folds: n R; None for a single fold.

    Returns:
        The AUC; NaN if a class has no pairs.
    """
    return _prepare_mean_auc(labels, scores, folds)(np.arange(len(labels)))


def _prepare_mean_auc(labels: NDArray, scores: NDArray, folds: NDArray | None) -> Callable[[NDArray], float]:
    codes = range(1, 2) if scores.shape[2] == 2 else range(scores.shape[2])
    areas = [prepare_auc(labels == code, scores[:, :, code], folds) for code in codes]

    def measure(rows: NDArray) -> float:
        counts = np.bincount(rows, minlength=len(labels))
        return float(np.mean([area(counts) for area in areas]))

    return measure


def _prepare(metric: ClassMetric, scored: Scored) -> Callable[[NDArray], float]:
    """Return the measure as a function of the rows of items in a resample."""
    if metric.within_folds:
        return _prepare_mean_auc(scored.labels, scored.scores, scored.folds)
    return lambda rows: metric.measure(scored.labels[rows], scored.scores[rows])


def _estimate(name: str, metric: ClassMetric, scored: Scored, resamples: int, seed: int) -> Interval:
    if name == "auc" and scored.classes == 2:
        return estimate_auc(scored.labels, scored.scores[:, :, 1], folds=scored.folds, patients=scored.patients)
    return bootstrap_interval(
        _prepare(metric, scored),
        np.arange(len(scored.labels)),
        patients=scored.patients,
        draws=resamples,
        seed=seed,
        widening=_find_widening(metric, scored),
        limits=metric.limits,
    )


def _find_widening(metric: ClassMetric, first: Scored, second: Scored | None = None) -> float:
    """Find the widening of a measure, or of its difference between two models on the same items and folds."""
    if first.folds is None:
        return 1.0

    def prepare(columns: NDArray) -> Callable[[NDArray], float]:
        parts = [
            _prepare(metric, replace(scored, scores=scored.scores[:, columns], folds=scored.folds[:, columns]))
            for scored in (first, second)
            if scored is not None and scored.folds is not None
        ]
        return lambda rows: parts[0](rows) - sum(part(rows) for part in parts[1:])

    return find_widening(prepare, first.folds, first.patients)


def _count_pairs(scored: Scored) -> int:
    """Count the pairs of items that are compared in each repeat."""
    folds = np.zeros(scored.scores.shape[:2], dtype=np.int64) if scored.folds is None else scored.folds
    return count_pairs(scored.labels, folds) // folds.shape[1]


def _measure_accuracy(labels: NDArray, scores: NDArray) -> float:
    return float(np.mean(_count_right(labels, scores)))


def _count_right(labels: NDArray, scores: NDArray) -> Floats:
    """Compute the share of columns in which each item is classified correctly, n."""
    right: Floats = (scores.argmax(axis=2) == labels[:, None]).mean(axis=1)
    return right


def _count_right_positives(labels: NDArray, scores: NDArray) -> Floats:
    return np.where(labels == 1, _count_right(labels, scores), np.nan)


def _count_right_negatives(labels: NDArray, scores: NDArray) -> Floats:
    return np.where(labels == 0, _count_right(labels, scores), np.nan)


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
    """How a measure of a classification is computed and used."""

    measure: Metric
    "Function of labels (n) and scores (n R K), averaged over the R columns."
    binary_only: bool = False
    "Whether it needs exactly two classes."
    compared: bool = False
    "Whether differences between models are tested."
    within_folds: bool = False
    "Whether it compares scores of two items, which must then be of one fold (AUC)."
    shares: Callable[[NDArray, NDArray], Floats] | None = None
    "For a proportion, how often each item was right (n), NaN if it does not count; needed for exact intervals at 0 and 1."
    limits: tuple[float, float] = (-np.inf, np.inf)
    "Smallest and largest possible value; a widened interval is truncated there."


_SHARE = (0.0, 1.0)

METRICS: dict[str, ClassMetric] = {
    "auc": ClassMetric(measure=measure_mean_auc, compared=True, within_folds=True, limits=_SHARE),
    "accuracy": ClassMetric(measure=_measure_accuracy, shares=_count_right, limits=_SHARE),
    "balanced_accuracy": ClassMetric(measure=_measure_balanced, compared=True, limits=_SHARE),
    "sensitivity": ClassMetric(measure=_measure_sensitivity, binary_only=True, shares=_count_right_positives, limits=_SHARE),
    "specificity": ClassMetric(measure=_measure_specificity, binary_only=True, shares=_count_right_negatives, limits=_SHARE),
    "brier": ClassMetric(measure=_measure_brier, limits=_SHARE),
}
"""Measures of a classification, in the order in which tables list them."""


def register_metric(name: str, metric: ClassMetric, about: Measure) -> None:
    """Add a measure of classifications: how it is computed (`metric`) and how it is presented (`about`)."""
    register_measure(name, about)
    METRICS[name] = metric


def list_compared() -> list[str]:
    """List the measures whose differences between models are tested, the main one first."""
    return [name for name, metric in METRICS.items() if metric.compared]


def _compare(name: str, first: Scored, second: Scored, resamples: int, seed: int) -> Any:
    if name == "auc" and first.classes == 2:
        first_scores, second_scores = first.scores[:, :, 1], second.scores[:, :, 1]
        return compare_auc(first.labels, first_scores, second_scores, folds=first.folds, patients=first.patients)
    measures = (_prepare(METRICS[name], first), _prepare(METRICS[name], second))
    rows, zeros = np.arange(len(first.labels)), np.zeros(len(first.labels), dtype=np.int64)
    return bootstrap_difference(
        lambda rows, which: measures[int(which[0])](rows),
        rows,
        zeros,
        zeros + 1,
        patients=first.patients,
        draws=resamples,
        seed=seed,
        widening=_find_widening(METRICS[name], first, second),
    )
