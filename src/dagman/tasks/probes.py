"""What frozen features know: a linear probe, k nearest neighbours, and ridge regression of a number.

Features are n x p; labels are codes 0..K-1, each of which occurs in training; scores are n x K and sum to 1.
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
"""Values of C tried, for features divided by sqrt(p), so that one range serves any number of features."""
PENALTIES = tuple(10.0**power for power in (4, 3, 2, 1, 0, -1, -2, -3))
"""Of ridge regression, for the same features; of equally good ones the largest is taken."""
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
    "K x p, on standardised features; K is 1 if binary."
    bias: Floats
    "K"
    regularisation: float
    "The C that was chosen."
    read: int
    "Leading features that are read; the weights of the others are 0."

    def score(self, features: ArrayLike) -> Floats:
        """Probabilities, n x K (K >= 2), of features, n x p."""
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
    """Scores, n_test x K, of a linear probe fitted to the training items alone."""
    return fit_linear_probe(train_features, train_labels, train_patients, stage_ends=stage_ends, seed=seed).score(test_features)


def fit_linear_probe(
    features: ArrayLike, labels: ArrayLike, patients: ArrayLike, *, stage_ends: Sequence[int] = (), seed: int = 0
) -> LinearProbe:
    """Standardise and fit a logistic regression; C by log loss in an inner, grouped, stratified cross-validation.

    stage_ends: the columns after which a probe may stop reading: those of x1, of x1 and x2, ... (decision 0010); where it stops
    is chosen with C, in the same inner folds. None: it reads all.
    With one patient of a class nothing can be left out: C is 1, and all is read. Raises TaskError for one class or for NaN.
    """
    features, labels = _check_features(features), np.asarray(labels, dtype=np.int64)
    if len(np.unique(labels)) < 2:
        raise TaskError("the training items are of one class", do="Give items of at least two classes")
    return _fit_scaled(features, *_measure_scale(features), labels, patients, seed, stage_ends)


def fit_scaled_probe(features: ArrayLike, labels: ArrayLike, patients: ArrayLike, *, seed: int = 0) -> LinearProbe:
    """As `fit_linear_probe`, for features whose scales mean something (principal components, standardised columns) and stay."""
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
        place = int(np.argmin(losses))
        # The fewest features that do as well.
        if least is None or losses[place] < least[0]:
            least = float(losses[place]), end, REGULARISATIONS[place]
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
    "p, on standardised features."
    bias: float
    penalty: float
    "The one of PENALTIES that was chosen."
    read: int
    "Leading features that are read; the weights of the others are 0."

    def predict(self, features: ArrayLike) -> Floats:
        """Numbers, n, of features, n x p."""
        predicted: Floats = (_check_features(features) - self.mean) / self.scale @ self.weights + self.bias
        return predicted


def fit_ridge_probe(
    features: ArrayLike, values: ArrayLike, patients: ArrayLike, *, stage_ends: Sequence[int] = (), seed: int = 0
) -> RidgeProbe:
    """Standardise and fit a ridge regression to numbers (n); the penalty by squared error in inner folds by patient.

    stage_ends: as of `fit_linear_probe`. With one patient nothing can be left out: the penalty is 1, and all is read.
    Raises TaskError for features that are not finite.
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
        place = int(np.argmin(errors))
        if least is None or errors[place] < least[0]:
            least = float(errors[place]), end, PENALTIES[place]
    _, read, penalty = least or (math.nan, features.shape[1], _UNCHOSEN)
    points, axes = _to_points(standard[:, :read])
    model = Ridge(alpha=penalty).fit(points, values)
    weights = np.zeros(features.shape[1])
    weights[:read] = (model.coef_ if axes is None else model.coef_ @ axes) / math.sqrt(read)
    return RidgeProbe(mean=mean, scale=scale, weights=weights, bias=float(model.intercept_), penalty=penalty, read=read)


def _measure_errors(points: Floats, values: Floats, patients: ArrayLike, seed: int) -> Floats | None:
    """Squared error out of inner folds for each of PENALTIES, summed over items; None where no patient can be left out."""
    patients = np.asarray(patients, dtype=str)
    folds = min(_INNER_FOLDS, len(set(patients.tolist())))
    if folds < 2:
        return None
    errors = np.zeros(len(PENALTIES))
    for split in plan_splits(patients, folds=folds, seed=seed):
        known, center, level = points[split.train], points[split.train].mean(axis=0), values[split.train].mean()
        # One decomposition gives the fits of all penalties.
        left, singular, axes = np.linalg.svd(known - center, full_matrices=False)
        turned, asked = left.T @ (values[split.train] - level), (points[split.test] - center) @ axes.T
        for place, penalty in enumerate(PENALTIES):
            predicted = asked @ (singular / (singular**2 + penalty) * turned) + level
            errors[place] += float(np.sum((values[split.test] - predicted) ** 2))
    return errors


def neighbour_probe(
    train_features: ArrayLike, train_labels: ArrayLike, train_patients: ArrayLike, test_features: ArrayLike, *, seed: int = 0
) -> Floats:
    """Scores, n_test x K, of the 20 nearest training items (fewer if there are fewer) by cosine of standardised features.

    Votes weigh exp(cosine / 0.07), as in Wu et al., CVPR 2018. Nothing is drawn or grouped: `train_patients` and `seed` make
    the signature that of `linear_probe`.
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
    """Log loss out of inner folds for each of REGULARISATIONS, summed over items; None where nothing can be left out."""
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
    # Here and not above: applying a kept probe does not need sklearn, which takes 0.6 s to load.
    from sklearn.linear_model import LogisticRegression

    # Newton with conjugate gradients: of sklearn's solvers the quickest here by two to a hundred times, for any K.
    return LogisticRegression(C=regularisation, solver="newton-cg", tol=1e-5, max_iter=1000).fit(points, labels)


def _to_points(standard: Floats) -> tuple[Floats, Floats | None]:
    """Standardised features divided by sqrt(p), in as many coordinates as there are items, with the axes of these."""
    scaled = standard / math.sqrt(standard.shape[1])
    if len(scaled) >= scaled.shape[1]:
        return scaled, None
    # An L2 penalty does not see a rotation, and the weights lie in the span of the items: n coordinates do for p features.
    left, singular, axes = np.linalg.svd(scaled, full_matrices=False)
    return left * singular, axes


def _measure_scale(features: Floats) -> tuple[Floats, Floats]:
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # A constant feature has a deviation of rounding errors.
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
