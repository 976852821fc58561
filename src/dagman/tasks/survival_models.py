"""Survival models on frozen features and clinical columns, fitted only to training patients.

Notation: n patients, p features, k columns of a design, T times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagman.errors import TaskError
from dagman.randomness import address
from dagman.records.counts import count_noun
from dagman.tables.clinical import ClinicalDesign, Values, fit_clinical

Floats = NDArray[np.float64]

COMPONENTS = 32
"""Maximum number of principal components; fewer are used if they explain `_HELD` of the variance. [ours]"""
_HELD = 0.95
TREES = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Standardisation and principal components of features, as plain arrays that can be stored.

    Components keep their relative spread; the first is scaled to a standard deviation of 1 like a standardised clinical value, so
    that a common penalty treats both alike.
    """

    mean: Floats
    "p"
    scale: Floats
    "p; 1 for constant features."
    axes: Floats
    "p k"

    def encode(self, features: ArrayLike) -> Floats:
        """Project features (n p) onto the components (n k)."""
        return ((np.asarray(features, dtype=np.float64) - self.mean) / self.scale) @ self.axes


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Encoding of patients for a model: components of their features, their clinical values, or both."""

    projection: Projection | None = None
    clinical: ClinicalDesign | None = None

    def encode(self, features: NDArray | None, patients: Sequence[Values]) -> Floats:
        """Return the design matrix (n k); `features` (n p) and clinical values are used if the design was fitted to them."""
        parts = []
        if self.projection is not None and features is not None:
            parts.append(self.projection.encode(features))
        if self.clinical is not None:
            parts.append(self.clinical.encode(patients))
        return np.concatenate(parts, axis=1)


def fit_projection(features: ArrayLike, *, components: int = COMPONENTS, held: float = _HELD) -> Projection:
    """Standardise features (n p) and keep the components that explain `held` of their variance, at most `components`.

    Raises:
        TaskError: Features are not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    wrong = int(np.sum(~np.isfinite(features).all(axis=1)))
    if wrong:
        what = f"the features of {count_noun(wrong, 'patient')} hold NaN or infinite numbers"
        raise TaskError(what, do="Embed them again, or drop them")
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # Rounding gives constant features a tiny deviation.
    scale = np.where(scale > 1e-12 * (np.abs(mean) + 1), scale, 1.0)
    _, spreads, axes = np.linalg.svd((features - mean) / scale, full_matrices=False)
    shares = np.cumsum(spreads**2) / max(float(np.sum(spreads**2)), 1e-300)
    count = min(components, int(np.searchsorted(shares, held)) + 1, len(spreads))
    first = float(spreads[0]) / np.sqrt(len(features))
    return Projection(mean=mean, scale=scale, axes=axes[:count].T / (first if first > 0 else 1.0))


def fit_design(features: NDArray | None, patients: Sequence[Values], *, clinical: bool, categorical: Sequence[str] = ()) -> Design:
    """Fit a design to training patients, from their features (n p) unless None, and their clinical values if `clinical`."""
    return Design(
        projection=None if features is None else fit_projection(features),
        clinical=fit_clinical(patients, categorical) if clinical else None,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Forest:
    """A fitted random survival forest. It cannot be saved, because this would need pickle."""

    trees: Any

    def score(self, design: ArrayLike) -> Floats:
        """Return the risk (n) as the expected number of events; higher means earlier events."""
        return np.asarray(self.trees.predict(np.asarray(design, dtype=np.float64)))

    def survive(self, design: ArrayLike, times: ArrayLike) -> Floats:
        """Predict the probability of surviving each of the times without event (n T)."""
        if not np.size(times):
            return np.empty((len(np.asarray(design)), 0))
        steps = self.trees.predict_survival_function(np.asarray(design, dtype=np.float64), return_array=True)
        columns = np.searchsorted(self.trees.unique_times_, np.asarray(times, dtype=np.float64), side="right")
        return np.concatenate([np.ones((len(steps), 1)), steps], axis=1)[:, columns]


def fit_forest(design: ArrayLike, time: ArrayLike, event: ArrayLike, *, seed: int = 0) -> Forest:
    """Fit a random survival forest (Ishwaran et al., Ann. Appl. Stat. 2008) with 200 trees to a design (n k).

    Raises:
        TaskError: There are no events.
    """
    from sksurv.ensemble import RandomSurvivalForest
    from sksurv.util import Surv

    event = np.asarray(event, dtype=bool)
    if not event.any():
        raise TaskError("the training items contain no event", do="Use fewer folds, or add patients with an event")
    forest = RandomSurvivalForest(
        n_estimators=TREES, min_samples_leaf=5, max_features="sqrt", n_jobs=1, random_state=address(seed, "forest") % 2**31
    )
    return Forest(
        trees=forest.fit(np.asarray(design, dtype=np.float64), Surv.from_arrays(event, np.asarray(time, dtype=np.float64)))
    )
