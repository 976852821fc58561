"""Survival statistics of n items: time >= 0 in the table's unit, event True if observed and False if censored.

Kaplan-Meier, the censoring distribution and the log-rank test come from scikit-survival. This module adds what it lacks: the
pairs behind a concordance (`comparable_pairs`, needed to compare within folds and to resample), calibration in groups, and a
choice of evaluation times.
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
    """Kaplan-Meier estimate: a right-continuous step function with steps at `times`, starting at 1 at time 0."""

    times: Floats
    survival: Floats
    low: Floats
    high: Floats

    def at(self, times: ArrayLike) -> Floats:
        """Return the survival at the given times."""
        return self.survival[np.searchsorted(self.times, np.asarray(times, dtype=np.float64), side="right") - 1]


@dataclass(frozen=True, kw_only=True)
class LogRank:
    """Result of a log-rank test of the hypothesis that two or more groups have equal hazards."""

    statistic: float
    degrees: int
    p: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Predicted and observed (Kaplan-Meier) survival at a horizon, in groups ordered by predicted survival."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    counts: NDArray[np.int64]


def kaplan_meier(time: ArrayLike, event: ArrayLike, level: float = 0.95) -> SurvivalCurve:
    """Estimate survival by Kaplan-Meier, with Greenwood's variance and log(-log) intervals (Kalbfleisch and Prentice 2002, 1.4).

    The interval is NaN once the survival estimate has reached 0.
    """
    time, event = _as_arrays(time, event)
    times, survival, (low, high) = kaplan_meier_estimator(event, time, conf_level=level, conf_type="log-log")
    # The interval is undefined at a survival of 0, where scikit-survival returns 0 to 0.
    low, high = (np.where(survival > 0, bound, np.nan) for bound in (low, high))
    if times[0] > 0:
        times = np.append(0.0, times)
        survival, low, high = (np.append(1.0, values) for values in (survival, low, high))
    return SurvivalCurve(times=times, survival=survival, low=low, high=high)


def count_at_risk(time: ArrayLike, at: ArrayLike) -> NDArray[np.int64]:
    """Count the items that are still under observation just before each of the times `at`."""
    ordered = np.sort(np.asarray(time, dtype=np.float64))
    return len(ordered) - np.searchsorted(ordered, np.asarray(at, dtype=np.float64), side="left")


def logrank_test(time: ArrayLike, event: ArrayLike, groups: ArrayLike) -> LogRank:
    """Run the log-rank test (Mantel 1966) on the groups that occur.

    Statistic and p are NaN if undefined: fewer than two groups, no events, or a group that is not at risk at any event.
    """
    time, event = _as_arrays(time, event)
    degrees = max(len(np.unique(groups)) - 1, 0)
    undefined = LogRank(statistic=float("nan"), degrees=degrees, p=float("nan"))
    if not degrees or not event.any():
        return undefined
    try:
        statistic, p = compare_survival(Surv.from_arrays(event, time), np.asarray(groups))
    except np.linalg.LinAlgError:
        # The covariance of the statistic is singular.
        return undefined
    return LogRank(statistic=float(statistic), degrees=degrees, p=float(p))


def comparable_pairs(time: ArrayLike, event: ArrayLike, risk: ArrayLike, weights: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Weight the comparable and the concordant pairs, each n x n: entry (i, j) holds the weight of i, which has the earlier event.

    A pair is comparable if the earlier time is an event, or if both times are equal and exactly one is an event; equal risks
    count half. The ratio of the sums, concordant over comparable, is Harrell's C, or Uno's (Stat. Med. 2011) with inverse squared
    censoring survivals as weights. scikit-survival returns only the ratio, but resampling patients and comparing within folds
    need the pairs.
    """
    time, event = _as_arrays(time, event)
    risk = np.asarray(risk, dtype=np.float64)
    weights = np.ones(len(time)) if weights is None else np.asarray(weights, dtype=np.float64)
    earlier = (time[:, None] < time[None, :]) | ((time[:, None] == time[None, :]) & event[:, None] & ~event[None, :])
    comparable = (earlier & event[:, None]) * weights[:, None]
    ahead = (risk[:, None] > risk[None, :]) + 0.5 * (risk[:, None] == risk[None, :])
    return comparable, comparable * ahead


def censoring_survival(train_time: ArrayLike, train_event: ArrayLike, at: ArrayLike) -> Floats:
    """Estimate the probability of not being censored by each time `at`, by Kaplan-Meier of the censoring.

    Events precede censorings at the same time.
    """
    time, event = _as_arrays(train_time, train_event)
    times, survival = kaplan_meier_estimator(event, time, reverse=True)
    return np.append(1.0, survival)[np.searchsorted(times, np.asarray(at, dtype=np.float64), side="right")]


def calibrate_survival(
    time: ArrayLike, event: ArrayLike, predicted: ArrayLike, horizon: float, groups: int = 4, level: float = 0.95
) -> Calibration:
    """Compare mean predicted with Kaplan-Meier survival at `horizon`, in `groups` equal parts ordered by predicted survival."""
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
    """Choose times to evaluate survival at: the 10 % to 80 % quantiles of event times, before the last time; may be empty."""
    time, event = _as_arrays(time, event)
    if not event.any():
        return np.array([])
    times = np.unique(np.quantile(time[event], np.linspace(0.1, 0.8, count)))
    return times[times < time.max()]


def _as_arrays(time: ArrayLike, event: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    return np.asarray(time, dtype=np.float64), np.asarray(event, dtype=bool)
