"""Cox's proportional hazards model (JRSS B 1972): losses for fine-tuning, and the elastic net on frozen features.

Notation: n items, p features, T times; time >= 0, event True if observed and False if censored. A risk is the logarithm of a
relative hazard, so a higher risk means earlier events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dagman.errors import TaskError
from dagman.evaluation.splits import plan_splits

Floats = NDArray[np.float64]

MIXING = 0.5
"""Share of the lasso in the elastic net's penalty. [ours]"""
PENALTIES = 20
"""Number of penalties on the path, from the smallest at which all weights are 0 down to `_SMALLEST` of it."""
_SMALLEST = 0.02
_INNER_FOLDS = 5
_PATIENCE = 4
_TOLERANCE = 1e-7


def measure_breslow_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Compute the negative log partial likelihood per event with Breslow's ties (Biometrics 1974); risk, time and event are n.

    Without events, the loss and its gradient are 0.
    """
    # In float32, because sums of exponentials in bfloat16 lose the smaller risks.
    risk, event = risk.float() if risk.dtype != torch.float64 else risk, event.bool()
    at_risk = torch.logsumexp(_mask_out(risk, time[None, :] >= time[:, None]), dim=1)
    return _average_events(risk - at_risk, event)


def measure_efron_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Like `measure_breslow_loss`, but with Efron's ties (JASA 1977): of d tied events, event k (from 0) sees k/d of them gone."""
    risk, event = risk.float() if risk.dtype != torch.float64 else risk, event.bool()
    at_risk = torch.logsumexp(_mask_out(risk, time[None, :] >= time[:, None]), dim=1)
    tied = (time[None, :] == time[:, None]) & event[None, :]
    # Items without an event have no ties; the diagonal keeps their sum defined, and they are not counted below.
    dying = torch.logsumexp(_mask_out(risk, tied | torch.eye(len(risk), dtype=torch.bool, device=risk.device)), dim=1)
    earlier = torch.tril(tied, diagonal=-1).sum(dim=1).to(risk.dtype)
    gone = earlier / tied.sum(dim=1).clamp(min=1)
    return _average_events(risk - at_risk - torch.log1p(-gone * torch.exp(dying - at_risk)), event)


@dataclass(frozen=True, kw_only=True, eq=False)
class CoxModel:
    """A fitted Cox elastic net, as plain arrays that can be stored."""

    mean: Floats
    "p; mean of the training items, at which the risk is 0."
    weights: Floats
    "p"
    times: Floats
    "Event times in training, ascending."
    hazard: Floats
    "Cumulative baseline hazard (Breslow) from each of these times on, for an item at the mean."
    penalty: float
    "The chosen penalty."

    def score(self, features: ArrayLike) -> Floats:
        """Compute the risk (n) from features (n x p)."""
        return (np.asarray(features, dtype=np.float64) - self.mean) @ self.weights

    def survive(self, features: ArrayLike, times: ArrayLike) -> Floats:
        """Predict the probability of surviving each of the times without event, n x T."""
        hazard = np.append(0.0, self.hazard)[np.searchsorted(self.times, np.asarray(times, dtype=np.float64), side="right")]
        # Larger exponents would overflow, and survival is 0 long before.
        return np.exp(-hazard[None, :] * np.exp(np.minimum(self.score(features), 500.0))[:, None])


def fit_cox(features: ArrayLike, time: ArrayLike, event: ArrayLike, patients: ArrayLike, *, seed: int = 0) -> CoxModel:
    """Fit Cox's elastic net to features (n x p) of comparable scale.

    The penalty with the highest cross-validated partial likelihood (Verweij and van Houwelingen, Stat. Med. 1993) is chosen, in
    inner folds by patient; with fewer than four patients with an event, the middle of the path is used.

    Raises:
        TaskError: There are no events.
    """
    features, time, event = (
        np.asarray(features, dtype=np.float64),
        np.asarray(time, dtype=np.float64),
        np.asarray(event, dtype=bool),
    )
    if not event.any():
        raise TaskError("the training items contain no event", do="Use fewer folds, or add patients with an event")
    mean = features.mean(axis=0)
    data = _Ordered.of(features - mean, time, event)
    path = _list_penalties(data)
    chosen = _choose_penalty(features, time, event, np.asarray(patients, dtype=str), path, seed)
    weights = np.zeros(features.shape[1])
    for penalty in path[: chosen + 1]:
        weights = _descend(data, weights, penalty)
    times, hazard = _estimate_hazard(data, weights)
    return CoxModel(mean=mean, weights=weights, times=times, hazard=hazard, penalty=float(path[chosen]))


def anchor_risk(risk: ArrayLike, time: ArrayLike, event: ArrayLike) -> CoxModel:
    """Convert a risk (n) to a Cox model with one feature of weight 1, and the baseline hazard of these items."""
    risk = np.asarray(risk, dtype=np.float64)[:, None]
    mean, weights = risk.mean(axis=0), np.ones(1)
    data = _Ordered.of(risk - mean, np.asarray(time, dtype=np.float64), np.asarray(event, dtype=bool))
    times, hazard = _estimate_hazard(data, weights)
    return CoxModel(mean=mean, weights=weights, times=times, hazard=hazard, penalty=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ordered:
    """Items sorted by time; `first` and `last` are the slice of items with the same time as each item."""

    features: Floats
    time: Floats
    event: NDArray[np.bool_]
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @classmethod
    def of(cls, features: Floats, time: Floats, event: NDArray[np.bool_]) -> _Ordered:
        order = np.argsort(time, kind="stable")
        time = time[order]
        first, last = np.searchsorted(time, time, side="left"), np.searchsorted(time, time, side="right")
        return cls(features=features[order], time=time, event=event[order], first=first, last=last)

    def evaluate(self, weights: Floats) -> tuple[Floats, Floats, float]:
        """Compute relative hazards, their sum over items at risk at each item's time, and the log partial likelihood."""
        risk = self.features @ weights
        top = float(risk.max())
        hazards = np.exp(risk - top)
        at_risk = np.cumsum(hazards[::-1])[::-1][self.first]
        likelihood = float(np.sum((risk - top - np.log(at_risk))[self.event]))
        return hazards, at_risk, likelihood


def _list_penalties(data: _Ordered) -> Floats:
    gradient, _ = _differentiate(data, np.zeros(data.features.shape[1]))
    largest = float(np.abs(gradient).max()) / MIXING if gradient.size else 0.0
    return np.geomspace(1.0, _SMALLEST, PENALTIES) * max(largest, 1e-12)


def _choose_penalty(features: Floats, time: Floats, event: NDArray[np.bool_], patients: NDArray, path: Floats, seed: int) -> int:
    with_event = len(set(patients[event].tolist()))
    without = len(set(patients[~event].tolist()))
    if with_event < 4:
        return len(path) // 2
    # Stratify by event only if there are enough censored patients for every fold.
    strata = event if without >= _INNER_FOLDS else None
    parts = []
    for split in plan_splits(patients, strata, folds=min(_INNER_FOLDS, with_event), seed=seed):
        if event[split.train].any():
            centred = features - features[split.train].mean(axis=0)
            kept = _Ordered.of(centred[split.train], time[split.train], event[split.train])
            parts.append((kept, _Ordered.of(centred, time, event)))
    weights = [np.zeros(features.shape[1]) for _ in parts]
    gains: list[float] = []
    for penalty in path:
        weights = [_descend(kept, start, penalty) for (kept, _), start in zip(parts, weights, strict=True)]
        gains.append(sum(everyone.evaluate(w)[2] - kept.evaluate(w)[2] for (kept, everyone), w in zip(parts, weights, strict=True)))
        # Smaller penalties would only overfit, and take longer.
        if len(gains) - int(np.argmax(gains)) > _PATIENCE:
            break
    return int(np.argmax(gains))


def _descend(data: _Ordered, weights: Floats, penalty: float) -> Floats:
    """Minimise the penalised loss by proximal Newton steps with step halving; returns the weights."""
    loss = _penalise(data, weights, penalty)
    for _ in range(50):
        gradient, curvature = _differentiate(data, weights)
        target = _minimise_quadratic(gradient, curvature, weights, penalty)
        step = target - weights
        for halving in range(30):
            tried = weights + step * 0.5**halving
            reached = _penalise(data, tried, penalty)
            if reached <= loss:
                break
        else:
            return weights
        fallen, weights, loss = loss - reached, tried, reached
        if fallen < _TOLERANCE * (abs(loss) + 1e-12):
            break
    return weights


def _penalise(data: _Ordered, weights: Floats, penalty: float) -> float:
    shrinkage = MIXING * float(np.abs(weights).sum()) + (1 - MIXING) / 2 * float(weights @ weights)
    return -data.evaluate(weights)[2] / len(data.time) + penalty * shrinkage


def _differentiate(data: _Ordered, weights: Floats) -> tuple[Floats, Floats]:
    """Compute gradient (p) and curvature (p x p) of the mean negative log partial likelihood."""
    hazards, at_risk, _ = data.evaluate(weights)
    count = len(hazards)
    # Cumulative hazard up to and including the item's own time.
    lived = np.cumsum(data.event / at_risk)[data.last - 1]
    expected = hazards * lived
    gradient = data.features.T @ (expected - data.event)
    sums = np.cumsum((hazards[:, None] * data.features)[::-1], axis=0)[::-1][data.first]
    means = (sums / at_risk[:, None])[data.event]
    curvature = data.features.T @ (expected[:, None] * data.features) - means.T @ means
    return gradient / count, curvature / count


def _minimise_quadratic(gradient: Floats, curvature: Floats, weights: Floats, penalty: float) -> Floats:
    """Minimise the second-order approximation of the penalised loss around `weights` by coordinate descent."""
    lasso, ridge = penalty * MIXING, penalty * (1 - MIXING)
    found, slope = weights.copy(), gradient.copy()
    stiffness = np.maximum(np.diag(curvature), 0.0) + ridge + 1e-12
    for _ in range(100):
        largest = 0.0
        for j in range(len(found)):
            pulled = stiffness[j] * found[j] - (slope[j] + ridge * found[j])
            moved = float(np.sign(pulled) * max(abs(pulled) - lasso, 0.0) / stiffness[j]) - found[j]
            if moved:
                found[j] += moved
                slope += curvature[:, j] * moved
                largest = max(largest, abs(moved))
        if largest < 1e-8:
            break
    return found


def _estimate_hazard(data: _Ordered, weights: Floats) -> tuple[Floats, Floats]:
    risk = data.features @ weights
    top = float(risk.max())
    _, at_risk, _ = data.evaluate(weights)
    times = np.unique(data.time[data.event])
    steps = np.bincount(np.searchsorted(times, data.time[data.event]), weights=1 / at_risk[data.event], minlength=len(times))
    return times, np.cumsum(steps) * np.exp(-top)


def _mask_out(risk: Tensor, kept: Tensor) -> Tensor:
    return risk[None, :].expand(len(risk), -1).masked_fill(~kept, float("-inf"))


def _average_events(terms: Tensor, event: Tensor) -> Tensor:
    return -torch.where(event, terms, torch.zeros_like(terms)).sum() / event.sum().clamp(min=1)
