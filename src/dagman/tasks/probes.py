"""Probes of frozen features: linear probe, k nearest neighbours, and ridge regression.

Features are n x p. Labels are codes 0..K-1, all of which occur in training. Scores are n x K and sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagman.errors import TaskError
from dagman.evaluation.splits import plan_splits
from dagman.records.counts import count_noun

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]

REGULARISATIONS = tuple(10.0**power for power in (-2, -1, 0, 1, 2, 3, 4))
"""Candidate values of C. Features are divided by sqrt(p), so the same range suits any number of features."""
PENALTIES = tuple(10.0**power for power in (4, 3, 2, 1, 0, -1, -2, -3))
"""Candidate penalties of ridge regression, for features scaled in the same way; ties are resolved to the largest."""
_UNCHOSEN = 1.0
_INNER_FOLDS = 5
_TEMPERATURE = 0.07


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    """A logistic regression on standardised features, as plain arrays that can be stored."""

    mean: Floats
    "p"
    scale: Floats
    "p; 1 where a feature is constant."
    weights: Floats
    "K x p, for standardised features; K is 1 if binary."
    bias: Floats
    "K"
    regularisation: float
    "The chosen C."
    read: int
    "Number of leading features in use; the weights of the others are 0."

    def score(self, features: ArrayLike) -> Floats:
        """Compute class probabilities (n x K, K >= 2) from features (n x p)."""
        standard = (_check_features(features) - self.mean) / self.scale
        logits = standard @ self.weights.T + self.bias
        if logits.shape[1] == 1:
            logits = np.concatenate([-logits / 2, logits / 2], axis=1)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def linear_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    train_patients: ArrayLike,
    test_features: ArrayLike,
    *,
    stage_ends: Sequence[int] = (),
    seed: int = 0,
) -> Floats:
    """Fit a linear probe to the training items (`fit_linear_probe`) and return its scores of the test items, n_test x K."""
    return fit_linear_probe(train_features, train_labels, train_patients, stage_ends=stage_ends, seed=seed).score(test_features)


def fit_linear_probe(
    features: ArrayLike, labels: ArrayLike, patients: ArrayLike, *, stage_ends: Sequence[int] = (), seed: int = 0
) -> LinearProbe:
    """Fit a logistic regression to standardised features, choosing C by log loss in stratified inner folds by patient.

    If a class has only one patient, inner folds are impossible: C is then 1, and all features are used.

    Args:
        features: n x p.
        labels: Codes 0..K-1.
        patients: Patient of each item.
        stage_ends: Numbers of leading features that the probe may be restricted to: those of x1, of x1 and x2, ... (decision 0010).
            The number is chosen along with C; if empty, all features are used.
        seed: Seed of the inner folds.

    Raises:
        TaskError: There is only one class, or features are not finite.
    """
    features, labels = _check_features(features), np.asarray(labels, dtype=np.int64)
    if len(np.unique(labels)) < 2:
        raise TaskError("the training items are of one class", do="Give items of at least two classes")
    return _fit_scaled(features, *_measure_scale(features), labels, patients, seed, stage_ends)


def fit_scaled_probe(features: ArrayLike, labels: ArrayLike, patients: ArrayLike, *, seed: int = 0) -> LinearProbe:
    """Like `fit_linear_probe`, but keeps the scales of features for which they matter (components, standardised columns)."""
    features, labels = _check_features(features), np.asarray(labels, dtype=np.int64)
    if len(np.unique(labels)) < 2:
        raise TaskError("the training items are of one class", do="Give items of at least two classes")
    return _fit_scaled(features, features.mean(axis=0), np.ones(features.shape[1]), labels, patients, seed)


def _fit_scaled(
    features: Floats,
    mean: Floats,
    scale: Floats,
    labels: NDArray[np.int64],
    patients: ArrayLike,
    seed: int,
    stage_ends: Sequence[int] = (),
) -> LinearProbe:
    count = features.shape[1]
    standard = (features - mean) / scale
    least: tuple[float, int, float] | None = None
    for end in sorted({*stage_ends, count}):
        losses = _measure_losses(_to_points(standard[:, :end])[0], labels, patients, seed)
        if losses is None:
            break
        best = int(np.argmin(losses))
        # Strictly lower, so that ties are resolved to fewer features.
        if least is None or losses[best] < least[0]:
            least = float(losses[best]), end, REGULARISATIONS[best]
    _, read, regularisation = least or (math.nan, count, _UNCHOSEN)
    points, axes = _to_points(standard[:, :read])
    model = _fit_logistic(points, labels, regularisation)
    weights = np.zeros((len(model.coef_), count))
    weights[:, :read] = (model.coef_ if axes is None else model.coef_ @ axes) / math.sqrt(read)
    return LinearProbe(mean=mean, scale=scale, weights=weights, bias=model.intercept_, regularisation=regularisation, read=read)


@dataclass(frozen=True, kw_only=True, eq=False)
class RidgeProbe:
    """A ridge regression on standardised features, as plain arrays that can be stored."""

    mean: Floats
    "p"
    scale: Floats
    "p; 1 where a feature is constant."
    weights: Floats
    "p, for standardised features."
    bias: float
    penalty: float
    "The chosen one of PENALTIES."
    read: int
    "Number of leading features in use; the weights of the others are 0."

    def predict(self, features: ArrayLike) -> Floats:
        """Predict values (n) from features (n x p)."""
        predicted: Floats = (_check_features(features) - self.mean) / self.scale @ self.weights + self.bias
        return predicted


def fit_ridge_probe(
    features: ArrayLike, values: ArrayLike, patients: ArrayLike, *, stage_ends: Sequence[int] = (), seed: int = 0
) -> RidgeProbe:
    """Fit a ridge regression to standardised features, choosing the penalty by squared error in inner folds by patient.

    With only one patient, inner folds are impossible: the penalty is then 1, and all features are used. Arguments are those of
    `fit_linear_probe`, with values (n) instead of labels.

    Raises:
        TaskError: Features are not finite.
    """
    from sklearn.linear_model import Ridge

    features, values = _check_features(features), np.asarray(values, dtype=np.float64)
    mean, scale = _measure_scale(features)
    standard = (features - mean) / scale
    least: tuple[float, int, float] | None = None
    for end in sorted({*stage_ends, features.shape[1]}):
        errors = _measure_errors(_to_points(standard[:, :end])[0], values, patients, seed)
        if errors is None:
            break
        best = int(np.argmin(errors))
        if least is None or errors[best] < least[0]:
            least = float(errors[best]), end, PENALTIES[best]
    _, read, penalty = least or (math.nan, features.shape[1], _UNCHOSEN)
    points, axes = _to_points(standard[:, :read])
    model = Ridge(alpha=penalty).fit(points, values)
    weights = np.zeros(features.shape[1])
    weights[:read] = (model.coef_ if axes is None else model.coef_ @ axes) / math.sqrt(read)
    return RidgeProbe(mean=mean, scale=scale, weights=weights, bias=float(model.intercept_), penalty=penalty, read=read)


def _measure_errors(points: Floats, values: Floats, patients: ArrayLike, seed: int) -> Floats | None:
    """Sum squared errors over inner folds for each of PENALTIES; None if there are too few patients for folds."""
    patients = np.asarray(patients, dtype=str)
    folds = min(_INNER_FOLDS, len(set(patients.tolist())))
    if folds < 2:
        return None
    errors = np.zeros(len(PENALTIES))
    for split in plan_splits(patients, folds=folds, seed=seed):
        known, center, level = points[split.train], points[split.train].mean(axis=0), values[split.train].mean()
        # A single decomposition yields the fits for all penalties.
        left, singular, axes = np.linalg.svd(known - center, full_matrices=False)
        turned, asked = left.T @ (values[split.train] - level), (points[split.test] - center) @ axes.T
        for place, penalty in enumerate(PENALTIES):
            predicted = asked @ (singular / (singular**2 + penalty) * turned) + level
            errors[place] += float(np.sum((values[split.test] - predicted) ** 2))
    return errors


def neighbour_probe(
    train_features: ArrayLike, train_labels: ArrayLike, train_patients: ArrayLike, test_features: ArrayLike, *, seed: int = 0
) -> Floats:
    """Score test items (n_test x K) by their 20 nearest training items, by cosine similarity of standardised features.

    Votes are weighted by exp(cosine / 0.07), as in Wu et al., CVPR 2018. `train_patients` and `seed` are unused; they make the
    signature equal to that of `linear_probe`.
    """
    train, test = _check_features(train_features), _check_features(test_features)
    labels = np.asarray(train_labels, dtype=np.int64)
    mean, scale = _measure_scale(train)
    cosines = _to_unit((test - mean) / scale) @ _to_unit((train - mean) / scale).T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(20, len(train))]
    near = np.take_along_axis(cosines, nearest, axis=1)
    votes = np.exp((near - near.max(axis=1, keepdims=True)) / _TEMPERATURE)
    scores = np.stack([np.sum(votes * (labels[nearest] == code), axis=1) for code in range(int(labels.max()) + 1)], axis=1)
    return scores / scores.sum(axis=1, keepdims=True)


def _measure_losses(points: Floats, labels: NDArray, patients: ArrayLike, seed: int) -> Floats | None:
    """Sum log losses over inner folds for each of REGULARISATIONS; None if a class has too few patients for folds."""
    patients = np.asarray(patients, dtype=str)
    fewest = min(len(set(patients[labels == label].tolist())) for label in np.unique(labels))
    if fewest < 2:
        return None
    losses = np.zeros(len(REGULARISATIONS))
    for split in plan_splits(patients, labels, folds=min(_INNER_FOLDS, fewest), seed=seed):
        if len(np.unique(labels[split.train])) < len(np.unique(labels)):
            continue
        for i, regularisation in enumerate(REGULARISATIONS):
            model = _fit_logistic(points[split.train], labels[split.train], regularisation)
            class_probabilities = model.predict_proba(points[split.test])
            of_truth = class_probabilities[np.arange(len(split.test)), np.searchsorted(model.classes_, labels[split.test])]
            losses[i] -= float(np.sum(np.log(np.maximum(of_truth, 1e-12))))
    return losses if losses.any() else None


def _fit_logistic(points: Floats, labels: NDArray, regularisation: float) -> LogisticRegression:
    # Imported here because applying a saved probe does not need sklearn, which takes 0.6 s to import.
    from sklearn.linear_model import LogisticRegression

    # Newton-CG is 2 to 100 times as fast here as sklearn's other solvers, for any K.
    return LogisticRegression(C=regularisation, solver="newton-cg", tol=1e-5, max_iter=1000).fit(points, labels)


def _to_points(standard: Floats) -> tuple[Floats, Floats | None]:
    """Divide standardised features by sqrt(p); if there are more features than items, rotate them into n coordinates.

    Returns the coordinates and their axes (None if not rotated).
    """
    scaled = standard / math.sqrt(standard.shape[1])
    if len(scaled) >= scaled.shape[1]:
        return scaled, None
    # The L2 penalty is invariant to rotation, and the weights lie in the span of the items, so n coordinates suffice.
    left, singular, axes = np.linalg.svd(scaled, full_matrices=False)
    return left * singular, axes


def _measure_scale(features: Floats) -> tuple[Floats, Floats]:
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # Rounding gives constant features a tiny deviation.
    return mean, np.where(scale > 1e-12 * (np.abs(mean) + 1), scale, 1.0)


def _to_unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _check_features(features: ArrayLike) -> Floats:
    features = np.asarray(features, dtype=np.float64)
    wrong = int(np.sum(~np.isfinite(features).all(axis=1)))
    if wrong:
        what = f"the features of {count_noun(wrong, 'item')} hold NaN or infinite numbers"
        raise TaskError(what, do="Embed these items again, or drop them")
    return features
