"""Time and event: n items; time >= 0 in the table's unit, event True where seen, False where censored.

Kaplan-Meier, the censoring survival and the log-rank test are scikit-survival's. What it lacks is here: pairs that are compared
within a fold (`comparable_pairs`, which resamples count over again), calibration in groups, and the times to evaluate at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sksurv.compare import compare_survival
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

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


def kaplan_meier(time: ArrayLike, event: ArrayLike, level: float = 0.95) -> SurvivalCurve:
    """Kaplan-Meier with Greenwood's variance and the log(-log) interval (Kalbfleisch and Prentice 2002, 1.4).

    The interval is NaN where everyone has had the event.
    """
    time, event = _as_arrays(time, event)
    times, survival, (low, high) = kaplan_meier_estimator(event, time, conf_level=level, conf_type="log-log")
    # Nothing is known of the interval at 0, where scikit-survival gives 0 to 0.
    low, high = (np.where(survival > 0, bound, np.nan) for bound in (low, high))
    if times[0] > 0:
        times = np.append(0.0, times)
        survival, low, high = (np.append(1.0, values) for values in (survival, low, high))
    return SurvivalCurve(times=times, survival=survival, low=low, high=high)


def count_at_risk(time: ArrayLike, at: ArrayLike) -> NDArray[np.int64]:
    """Number of items still followed just before each of the times `at`."""
    ordered = np.sort(np.asarray(time, dtype=np.float64))
    return len(ordered) - np.searchsorted(ordered, np.asarray(at, dtype=np.float64), side="left")


def logrank_test(time: ArrayLike, event: ArrayLike, groups: ArrayLike) -> LogRank:
    """The log-rank test (Mantel 1966) of the groups that occur.

    NaN where it is undefined: for fewer than two groups, no event, or a group that is not at risk at any event.
    """
    time, event = _as_arrays(time, event)
    degrees = max(len(np.unique(groups)) - 1, 0)
    undefined = LogRank(statistic=float("nan"), degrees=degrees, p=float("nan"))
    if not degrees or not event.any():
        return undefined
    try:
        statistic, p = compare_survival(Surv.from_arrays(event, time), np.asarray(groups))
    except np.linalg.LinAlgError:
        # The statistic has no variance.
        return undefined
    return LogRank(statistic=float(statistic), degrees=degrees, p=float(p))


def comparable_pairs(time: ArrayLike, event: ArrayLike, risk: ArrayLike, weights: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Comparable pairs and the concordant ones, n x n: row i has the earlier event, and its weight counts.

    A pair is comparable when the earlier time is an event, or when both times are equal and one of them is an event; equal risks
    count half. Harrell's C is the ratio of the two sums, Uno's (Stat. Med. 2011) with inverse squared censoring survivals as
    weights. scikit-survival gives the ratio alone; a resample of patients, and pairs within folds, need the pairs.
    """
    time, event = _as_arrays(time, event)
    risk = np.asarray(risk, dtype=np.float64)
    weights = np.ones(len(time)) if weights is None else np.asarray(weights, dtype=np.float64)
    earlier = (time[:, None] < time[None, :]) | ((time[:, None] == time[None, :]) & event[:, None] & ~event[None, :])
    comparable = (earlier & event[:, None]) * weights[:, None]
    ahead = (risk[:, None] > risk[None, :]) + 0.5 * (risk[:, None] == risk[None, :])
    return comparable, comparable * ahead


def censoring_survival(train_time: ArrayLike, train_event: ArrayLike, at: ArrayLike) -> Floats:
    """Probability of not being censored by each time `at`: Kaplan-Meier of censoring; of equal times an event comes first."""
    time, event = _as_arrays(train_time, train_event)
    times, survival = kaplan_meier_estimator(event, time, reverse=True)
    return np.append(1.0, survival)[np.searchsorted(times, np.asarray(at, dtype=np.float64), side="right")]


def calibrate_survival(
    time: ArrayLike, event: ArrayLike, predicted: ArrayLike, horizon: float, groups: int = 4, level: float = 0.95
) -> Calibration:
    """Mean predicted survival at `horizon` and Kaplan-Meier's, in `groups` equal parts ordered by predicted survival."""
    time, event = _as_arrays(time, event)
    predicted = np.asarray(predicted, dtype=np.float64)
    parts = [part for part in np.array_split(np.argsort(predicted, kind="stable"), groups) if len(part)]
    curves = [kaplan_meier(time[part], event[part], level) for part in parts]
    places = [int(np.searchsorted(curve.times, horizon, side="right")) - 1 for curve in curves]
    return Calibration(
        predicted=np.array([predicted[part].mean() for part in parts]),
        observed=np.array([curve.survival[i] for curve, i in zip(curves, places, strict=True)]),
        low=np.array([curve.low[i] for curve, i in zip(curves, places, strict=True)]),
        high=np.array([curve.high[i] for curve, i in zip(curves, places, strict=True)]),
        counts=np.array([len(part) for part in parts], dtype=np.int64),
    )


def choose_times(time: ArrayLike, event: ArrayLike, count: int = 10) -> Floats:
    """Times at which survival can be evaluated: quantiles 10 % to 80 % of the events', before the last time; may be empty."""
    time, event = _as_arrays(time, event)
    if not event.any():
        return np.array([])
    times = np.unique(np.quantile(time[event], np.linspace(0.1, 0.8, count)))
    return times[times < time.max()]


def _as_arrays(time: ArrayLike, event: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    return np.asarray(time, dtype=np.float64), np.asarray(event, dtype=bool)
