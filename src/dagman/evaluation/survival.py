"""Time and event: n items; time >= 0 in the table's unit, event True where seen, False where censored.

A higher risk means an earlier event. A measure that is undefined on its items is NaN. Kaplan-Meier, log-rank and both
concordances are numpy; what follows predicted survival over time is scikit-survival's (extra `survival`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, norm

from dagman.errors import MissingExtraError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SurvivalCurve:
    """Kaplan-Meier's estimate: steps at `times`, the value holding from each on; starts at time 0 with 1."""

    times: Floats
    survival: Floats
    low: Floats
    high: Floats

    def at(self, times: ArrayLike) -> Floats:
        """Survival at given times."""
        return self.survival[np.searchsorted(self.times, np.asarray(times, dtype=np.float64), side="right") - 1]


@dataclass(frozen=True, kw_only=True)
class LogRank:
    """Log-rank test of two or more groups: are their hazards equal?"""

    statistic: float
    degrees: int
    p: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Predicted against observed (Kaplan-Meier) survival at a horizon, in groups of predicted survival."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    counts: NDArray[np.int64]


def estimate_survival(time: ArrayLike, event: ArrayLike, level: float = 0.95) -> SurvivalCurve:
    """Kaplan-Meier with Greenwood's variance and the log(-log) interval (Kalbfleisch and Prentice 2002, 1.4).

    Where everyone has died the interval is NaN.
    """
    time, event = _check(time, event)
    times = np.unique(time)
    at_risk = count_at_risk(time, times)
    deaths = np.array([np.count_nonzero(event & (time == t)) for t in times], dtype=np.float64)
    survival = np.asarray(np.cumprod(1.0 - deaths / at_risk), dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(deaths / (at_risk * (at_risk - deaths)))
        reach = norm.ppf(0.5 + level / 2) * np.sqrt(greenwood) / np.log(survival)
        # log(survival) is negative, so +reach is the lower power and the upper bound.
        high, low = survival ** np.exp(reach), survival ** np.exp(-reach)
    # Before the first event nothing varies.
    certain = survival == 1
    low, high = np.where(certain, 1.0, low), np.where(certain, 1.0, high)
    if len(times) and times[0] == 0:
        return SurvivalCurve(times=times, survival=survival, low=low, high=high)
    first = np.array([1.0])
    return SurvivalCurve(
        times=np.append(0.0, times),
        survival=np.append(first, survival),
        low=np.append(first, low),
        high=np.append(first, high),
    )


def count_at_risk(time: ArrayLike, at: ArrayLike) -> NDArray[np.int64]:
    """Number of items still followed just before each of the times `at`."""
    ordered = np.sort(np.asarray(time, dtype=np.float64))
    return len(ordered) - np.searchsorted(ordered, np.asarray(at, dtype=np.float64), side="left")


def compare_survival(time: ArrayLike, event: ArrayLike, groups: ArrayLike) -> LogRank:
    """The log-rank test (Mantel 1966) of the groups that occur; NaN for fewer than two groups or no event."""
    time, event = _check(time, event)
    groups = np.asarray(groups)
    names = np.unique(groups)
    degrees = max(len(names) - 1, 0)
    excess, covariance = np.zeros(len(names)), np.zeros((len(names), len(names)))
    for t in np.unique(time[event]):
        at_risk = np.array([np.count_nonzero((groups == name) & (time >= t)) for name in names], dtype=np.float64)
        deaths = np.array([np.count_nonzero((groups == name) & event & (time == t)) for name in names], dtype=np.float64)
        total, died = at_risk.sum(), deaths.sum()
        share = at_risk / total
        excess += deaths - died * share
        if total > 1:
            covariance += died * (total - died) / (total - 1) * (np.diag(share) - np.outer(share, share))
    # One group's row follows from the others'.
    if not degrees or not covariance.any():
        return LogRank(statistic=float("nan"), degrees=degrees, p=float("nan"))
    statistic = float(excess[:-1] @ np.linalg.pinv(covariance[:-1, :-1]) @ excess[:-1])
    return LogRank(statistic=statistic, degrees=degrees, p=float(chi2.sf(statistic, degrees)))


def measure_concordance(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> float:
    """Harrell's C: share of comparable pairs whose earlier event has the higher risk; equal risks count half.

    A pair is comparable when the earlier time is an event, or when both times are equal and one of them is an event.
    """
    time, event = _check(time, event)
    return _measure_weighted_concordance(time, event, np.asarray(risk, dtype=np.float64), np.ones(len(time)))


def measure_uno_concordance(
    train_time: ArrayLike,
    train_event: ArrayLike,
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    horizon: float | None = None,
) -> float:
    """Uno's C (Stat. Med. 2011): pairs weighted by the inverse squared chance of not being censored, from training data.

    horizon: pairs whose earlier time lies beyond it are left out; None: the last training time at which someone can
    still be uncensored, without which weights would be infinite.
    """
    time, event = _check(time, event)
    train_time, train_event = _check(train_time, train_event)
    weights = estimate_uncensored(train_time, train_event, time)
    limit = horizon if horizon is not None else float("inf")
    known = event & (weights > 0) & (time < limit)
    inverse = np.where(known, 1 / np.where(weights > 0, weights, 1) ** 2, 0.0)
    return _measure_weighted_concordance(time, known, np.asarray(risk, dtype=np.float64), inverse)


def tally_pairs(time: ArrayLike, event: ArrayLike, risk: ArrayLike, weights: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Comparable pairs and the rightly ordered ones, n x n: row i is the earlier event, its weight counts; a tie is half right."""
    time, event = _check(time, event)
    risk = np.asarray(risk, dtype=np.float64)
    weights = np.ones(len(time)) if weights is None else np.asarray(weights, dtype=np.float64)
    earlier = (time[:, None] < time[None, :]) | ((time[:, None] == time[None, :]) & event[:, None] & ~event[None, :])
    comparable = (earlier & event[:, None]) * weights[:, None]
    ahead = (risk[:, None] > risk[None, :]) + 0.5 * (risk[:, None] == risk[None, :])
    return comparable, comparable * ahead


def estimate_uncensored(train_time: ArrayLike, train_event: ArrayLike, at: ArrayLike) -> Floats:
    """Chance of not being censored by each time `at`: Kaplan-Meier of censoring."""
    train_time, train_event = _check(train_time, train_event)
    times = np.unique(train_time)
    deaths, censored = (
        np.array([np.count_nonzero(kind & (train_time == t)) for t in times]) for kind in (train_event, ~train_event)
    )
    # Of equal times an event comes before a censoring, so who died is not at risk of being censored.
    at_risk = count_at_risk(train_time, times) - deaths
    class_probabilities = np.append(1.0, np.cumprod(1.0 - censored / np.maximum(at_risk, 1)))
    return class_probabilities[np.searchsorted(times, np.asarray(at, dtype=np.float64), side="right")]


def calibrate_survival(
    time: ArrayLike, event: ArrayLike, predicted: ArrayLike, horizon: float, groups: int = 4, level: float = 0.95
) -> Calibration:
    """Mean predicted survival at `horizon` and Kaplan-Meier's, in `groups` equal parts ordered by predicted survival."""
    time, event = _check(time, event)
    predicted = np.asarray(predicted, dtype=np.float64)
    parts = [part for part in np.array_split(np.argsort(predicted, kind="stable"), groups) if len(part)]
    curves = [estimate_survival(time[part], event[part], level) for part in parts]
    places = [int(np.searchsorted(curve.times, horizon, side="right")) - 1 for curve in curves]
    return Calibration(
        predicted=np.array([predicted[part].mean() for part in parts]),
        observed=np.array([curve.survival[i] for curve, i in zip(curves, places, strict=True)]),
        low=np.array([curve.low[i] for curve, i in zip(curves, places, strict=True)]),
        high=np.array([curve.high[i] for curve, i in zip(curves, places, strict=True)]),
        counts=np.array([len(part) for part in parts], dtype=np.int64),
    )


def choose_times(train_time: ArrayLike, time: ArrayLike, event: ArrayLike, count: int = 10) -> Floats:
    """Times at which survival can be judged: quantiles 10 % to 80 % of the events', inside both follow-ups; may be empty."""
    time, event = _check(time, event)
    if not event.any():
        return np.array([])
    last = min(float(np.max(np.asarray(train_time))), float(time.max()))
    times = np.unique(np.quantile(time[event], np.linspace(0.1, 0.8, count)))
    return times[(times >= time.min()) & (times < last)]


def measure_integrated_brier(
    train_time: ArrayLike, train_event: ArrayLike, time: ArrayLike, event: ArrayLike, survival: ArrayLike, times: Sequence[float]
) -> float:
    """Integrated Brier score (Graf et al., Stat. Med. 1999) of predicted survival, n x times; NaN for fewer than two times."""
    metrics = _load_metrics()
    if len(times) < 2:
        return float("nan")
    train, test = _to_structured(train_time, train_event), _to_structured(*_follow(train_time, time, event))
    return float(metrics.integrated_brier_score(train, test, np.asarray(survival, dtype=np.float64), np.asarray(times)))


def measure_dynamic_auc(
    train_time: ArrayLike, train_event: ArrayLike, time: ArrayLike, event: ArrayLike, risk: ArrayLike, times: Sequence[float]
) -> tuple[Floats, float]:
    """Cumulative/dynamic AUC at `times` and its mean (Lambert and Chevret 2016); risk is n, or n x times. NaN without times."""
    metrics = _load_metrics()
    if not len(times):
        return np.array([]), float("nan")
    train, test = _to_structured(train_time, train_event), _to_structured(*_follow(train_time, time, event))
    with np.errstate(divide="ignore", invalid="ignore"):
        areas, mean = metrics.cumulative_dynamic_auc(train, test, np.asarray(risk, dtype=np.float64), np.asarray(times))
    return np.asarray(areas), float(mean)


def _check(time: ArrayLike, event: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    return np.asarray(time, dtype=np.float64), np.asarray(event, dtype=bool)


def _measure_weighted_concordance(time: Floats, event: NDArray[np.bool_], risk: Floats, weights: Floats) -> float:
    comparable, concordant = tally_pairs(time, event, risk, weights)
    total = float(comparable.sum())
    return float(concordant.sum()) / total if total else float("nan")


def _follow(train_time: ArrayLike, time: ArrayLike, event: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Censors items at the end of the training data's follow-up: beyond it no weight can be estimated."""
    time, event = _check(time, event)
    last = float(np.max(np.asarray(train_time)))
    return np.minimum(time, last), event & (time < last)


def _to_structured(time: ArrayLike, event: ArrayLike) -> NDArray:
    time, event = _check(time, event)
    return np.array(list(zip(event, time, strict=True)), dtype=[("event", bool), ("time", np.float64)])


def _load_metrics() -> Any:
    try:
        import sksurv.metrics
    except ImportError:
        raise MissingExtraError("scikit-survival", "survival") from None
    return sksurv.metrics
