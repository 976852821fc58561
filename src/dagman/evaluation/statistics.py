"""How sure a number is, and whether two models differ: intervals over patients, paired comparisons, corrections.

Items of one patient are not independent, so resampling draws patients with all their items. A difference, its interval and its
p come from one statistic: p is the level at which the interval just reaches 0.

Out of fold, resampling the patients of given scores misses that other patients would have given other models. Intervals are widened
for it by the variance of a repeated cross-validation (Nadeau and Bengio, Machine Learning 2003; decision 0022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm
from scipy.stats import t as student_t

from dagman.randomness import generator
from dagman.records.counts import count_noun

Floats = NDArray[np.float64]
Metric = Callable[..., float]
"""A measure of arrays whose first axis is items; NaN where it is undefined."""
_SAME = 1e-12
"""Resamples closer than this differ by rounding alone."""
FEWEST_PATIENTS = 5
"""Fewer have too few resamples for an interval: two patients give three, and bounds that say nothing. [ours]"""
FEWEST_PAIRS = 100
"""Fewer comparable pairs are stated beside an AUC or a C: each then moves it by more than 0.01. [ours]"""
FEW_PATIENTS = 50
"""Of fewer a verdict says so: of 43 an AUC of 0.69 has an interval that is 0.46 wide (decision 0022). [ours]"""
LEAST_IN_GROUP = 10
"""Fewest items in a group whose share is set against what was predicted of it: a tenth more or less is one item then. [ours]"""
REFITTING = "widened for refitting (Nadeau & Bengio)"
"""Said of intervals that hold for the models of other patients too."""
POWER = 0.8
"""Chance of finding a difference of `find_detectable`."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its confidence interval, and how that came to be."""

    value: float
    low: float
    high: float
    level: float
    items: int
    patients: int
    how: str
    "Method in words, with resamples that were skipped and why."


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """First model minus second on the same items; p is two-sided and not corrected for other comparisons."""

    p: float

    @property
    def detectable(self) -> float:
        """See `find_detectable`, as for a normal statistic; NaN without an interval."""
        return find_detectable((self.high - self.low) / 2, level=self.level)


def find_detectable(half: float, *, level: float = 0.95, freedom: float = math.inf) -> float:
    """The smallest true difference that is found in 4 of 5 repetitions, from half the width of an interval for it.

    (t of the level + t of 80 % power) standard errors, with so many degrees of freedom; infinitely many are the normal's z.
    With few of them the difference is found a little less often: in 73 % with one, 79 % with four.
    """
    return float(half * (1 + student_t.ppf(POWER, freedom) / student_t.ppf(0.5 + level / 2, freedom)))


def bootstrap_interval(
    metric: Metric,
    *arrays: ArrayLike,
    patients: ArrayLike,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    widening: float = 1.0,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """The BCa bootstrap interval of `metric(*arrays)` over patients (Efron, JASA 1987).

    arrays: each with items first. Resamples on which the metric is NaN (one class only) are skipped and counted.
    Where bias or acceleration cannot be had, the plain percentile interval is given, and `how` says so; with fewer than
    FEWEST_PATIENTS, or where every resample gives the same value, there is none (NaN), and `how` says why.
    widening: how much further from the value its ends lie than those of the bootstrap (`find_widening`), up to the `limits`.
    """
    inputs, rows = [np.asarray(array) for array in arrays], rows_of_patients(patients)
    value = float(metric(*inputs))
    values = _resample(metric, inputs, rows, draws, seed)
    low, high, how = _bound(metric, inputs, rows, value, values, level, widening)
    low, high = max(low, min(limits[0], value)), min(high, max(limits[1], value))
    items = len(inputs[0])
    return Interval(value=value, low=low, high=high, level=level, items=items, patients=len(rows), how=how)


def bootstrap_difference(
    metric: Metric,
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    patients: ArrayLike,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    widening: float = 1.0,
) -> Difference:
    """`metric(labels, first) - metric(labels, second)` with a BCa interval, both models on the same resamples.

    p inverts the interval: it is 1 minus the largest level at which the interval leaves 0 out, at least 2 / (resamples + 1)
    (Davison and Hinkley 1997, 4.4), so that an interval that leaves out 0 and a p below its level are one and the same.
    widening: as of `bootstrap_interval`; p is that of the widened interval.
    """

    def subtract(labels: NDArray, first: NDArray, second: NDArray) -> float:
        return metric(labels, first) - metric(labels, second)

    inputs, rows = [np.asarray(labels), np.asarray(first), np.asarray(second)], rows_of_patients(patients)
    value = float(subtract(*inputs))
    values = _resample(subtract, inputs, rows, draws, seed)
    low, high, how = _bound(subtract, inputs, rows, value, values, level, widening)
    p = _find_p(subtract, inputs, rows, value, values, widening)
    items = len(inputs[0])
    return Difference(value=value, low=low, high=high, level=level, items=items, patients=len(rows), how=f"paired {how}", p=p)


def warn_of_few_pairs(interval: Interval, pairs: int, of: str) -> Interval:
    """The interval, with the number of pairs in each repeat where it is below FEWEST_PAIRS; of: "items" or "patients"."""
    if pairs >= FEWEST_PAIRS:
        return interval
    return replace(interval, how=f"{interval.how}; only {count_noun(pairs, 'pair')} of {of} compared in each repeat")


def bound_proportion(right: float, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion, `right` of `count` (Clopper and Pearson, Biometrika 1934); NaN for a count of 0.

    `right` may be a fraction: a patient with some of several items right counts in part.
    """
    if not count:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, right, count - right + 1)) if right > 0 else 0.0
    high = float(beta.ppf(1 - tail, right + 1, count - right)) if right < count else 1.0
    return low, high


def bound_edge(interval: Interval, shares: ArrayLike, patients: ArrayLike, *, refitted: bool = False) -> Interval:
    """The exact interval over patients of a proportion that the bootstrap has none for: at 0 and 1, and of a few patients.

    shares: how often each item was right (n), NaN for those that do not count. refitted: whether its models are of several folds.
    """
    shares, patients = np.asarray(shares, dtype=np.float64), np.asarray(patients)
    known = ~np.isnan(shares)
    own = [float(shares[known & (patients == one)].mean()) for one in np.unique(patients[known])]
    right = float(np.sum(own))
    edge = right < 1e-9 or right > len(own) - 1e-9
    if not own or not (edge or len(own) < FEWEST_PATIENTS):
        return interval
    low, high = bound_proportion(round(right) if edge else right, len(own), level=interval.level)
    how = f"exact (Clopper-Pearson) over {count_noun(len(own), 'patient')}{', without refitting' if refitted else ''}"
    return replace(interval, low=low, high=high, how=how)


def correct_for_refitting(folds: int, repeats: int) -> float:
    """Variance of a repeated cross-validation's mean, over that of one repeat whose models are taken as given.

    1 / repeats + folds / (folds - 1): of the fold and repeat means, of variance s^2, (1 / (folds repeats) + n_test / n_train) s^2
    is the variance of their mean (Nadeau and Bengio, Machine Learning 2003; Bouckaert and Frank, PAKDD 2004), where s^2 / folds is
    what one repeat claims. 1 for one fold, a single split, whose model is the one that is judged.
    """
    return 1 / repeats + folds / (folds - 1) if folds > 1 else 1.0


def list_divisions(folds: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Number of folds and columns of each division of the items; folds n R, -1 for none. Draws share a division."""
    _, division = np.unique(folds, axis=1, return_inverse=True)
    columns = [np.flatnonzero(np.ravel(division) == one) for one in range(int(np.max(division)) + 1)]
    return [(len(np.unique(folds[folds[:, own[0]] >= 0, own[0]])), own) for own in columns]


def find_widening(prepare: Callable[[NDArray[np.int64]], Metric], folds: NDArray[np.int64], patients: ArrayLike) -> float:
    """How many times wider than over the patients of given scores an interval over refitted models is; 1 for a single split.

    prepare: the measure of some of the columns of `folds` (n R), as a function of rows of items. Repeats average out what depends
    on the division, and an interval over patients shrinks with them; what refitting adds does not. So the variance is that of one
    division by the jackknife, as all together have it, times `correct_for_refitting`.
    """
    divisions = list_divisions(folds)
    factor = correct_for_refitting(max(count for count, _ in divisions), len(divisions))
    if factor == 1 or len(divisions) == 1:
        return math.sqrt(factor)
    rows = rows_of_patients(patients)
    together = _jackknife(prepare(np.arange(folds.shape[1])), rows)
    single = [_jackknife(prepare(columns), rows) for _, columns in divisions]
    known = [variance for variance in single if variance > 0]
    return math.sqrt(factor * max(1.0, float(np.mean(known)) / together)) if known and together > 0 else math.sqrt(factor)


def _jackknife(measure: Metric, rows: list[NDArray]) -> float:
    """Variance over patients of a measure of rows of items; NaN where it is defined on fewer than two of the resamples."""
    left = (
        np.array([measure(np.concatenate([*rows[:i], *rows[i + 1 :]])) for i in range(len(rows))])
        if len(rows) > 1
        else np.array([])
    )
    known = left[~np.isnan(left)]
    return float((len(known) - 1) * np.var(known)) if len(known) > 1 else float("nan")


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, Scand. J. Statist. 1979), in the order given; NaN stays and is not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected


def rows_of_patients(patients: ArrayLike) -> list[NDArray[np.int64]]:
    """Rows of each patient, patients in sorted order, so that the order of rows changes no draw."""
    values, places = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(places, kind="stable")
    return np.split(order, np.cumsum(np.bincount(places, minlength=len(values)))[:-1])


def draw_samples(inputs: list[NDArray], rows: list[NDArray], draws: int, seed: int) -> Iterator[list[NDArray]]:
    """The arrays of each resample of patients, `rows` those of each patient; the draws depend on seed and count alone."""
    patients = _draw_patients(len(rows), draws, seed)
    # With a row a patient, a draw of patients is one of rows; to join rows one by one would be most of the time.
    single = np.concatenate(rows) if all(len(row) == 1 for row in rows) else None
    for drawn in patients:
        picked = np.concatenate([rows[i] for i in drawn]) if single is None else single[drawn]
        yield [array[picked] for array in inputs]


@lru_cache(maxsize=4)
def _draw_patients(count: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Patients of each resample, `draws` `count`; kept, as a table has hundreds of measures of the same patients."""
    return generator(seed, "bootstrap").integers(count, size=(draws, count))


def _resample(metric: Metric, inputs: list[NDArray], rows: list[NDArray], draws: int, seed: int) -> Floats:
    if len(rows) < FEWEST_PATIENTS:
        # There will be no interval: see `_bound`.
        return np.full(0, np.nan)
    return np.array([metric(*sample) for sample in draw_samples(inputs, rows, draws, seed)], dtype=np.float64)


def _bound(
    metric: Metric,
    inputs: list[NDArray],
    rows: list[NDArray],
    value: float,
    values: Floats,
    level: float,
    widening: float,
) -> tuple[float, float, str]:
    known = values[~np.isnan(values)]
    skipped = f", {count_noun(len(values) - len(known), 'undefined one')} skipped" if len(known) < len(values) else ""
    if len(rows) < FEWEST_PATIENTS:
        return float("nan"), float("nan"), f"no interval: too few patients to resample ({len(rows)})"
    if not len(known) or math.isnan(value):
        return float("nan"), float("nan"), "undefined on these patients"
    if np.ptp(known) <= _SAME * max(1.0, abs(value)):
        return (
            float("nan"),
            float("nan"),
            f"no interval: every bootstrap resample of these {len(rows)} patients gives the same value",
        )
    below = float(np.mean(known < value) + np.mean(known == value) / 2)
    if min(below, 1 - below) < (1 - level) / 2:
        # An agreement at its least possible value grows in nearly every resample: its quantiles would leave the value out.
        side, share = ("above", 1 - below) if below < 0.5 else ("below", below)
        return (
            float("nan"),
            float("nan"),
            f"no interval: {share:.0%} of the resamples of these {len(rows)} patients lie {side} the value",
        )
    bias, acceleration = _correct(metric, inputs, rows, value, known)
    ends = np.array([0.5 - level / 2, 0.5 + level / 2])
    if np.isfinite(bias):
        shifted = bias + norm.ppf(ends)
        ends = norm.cdf(bias + shifted / (1 - acceleration * shifted))
        method = "BCa bootstrap"
    else:
        method = "percentile bootstrap (BCa undefined)"
    low, high = value + widening * (np.quantile(known, ends) - value)
    widened = f", {REFITTING}" if widening != 1 else ""
    return float(low), float(high), f"{method} over patients, {len(values)} resamples{skipped}{widened}"


def _correct(metric: Metric, inputs: list[NDArray], rows: list[NDArray], value: float, known: Floats) -> tuple[float, float]:
    """BCa's bias and acceleration; both NaN where one of them cannot be had."""
    bias = float(norm.ppf(np.mean(known < value) + np.mean(known == value) / 2))
    acceleration = _accelerate(metric, inputs, rows)
    return (bias, acceleration) if np.isfinite(bias) and np.isfinite(acceleration) else (float("nan"), float("nan"))


def _find_p(metric: Metric, inputs: list[NDArray], rows: list[NDArray], value: float, values: Floats, widening: float) -> float:
    """Two-sided p of 0: the level at which an end of the interval of `_bound` lies on 0."""
    known = np.sort(values[~np.isnan(values)])
    if len(rows) < FEWEST_PATIENTS or not len(known) or math.isnan(value):
        return float("nan")
    least = min(1.0, 2 / (len(known) + 1))
    if np.ptp(known) <= _SAME * max(1.0, abs(value)):
        return 1.0 if abs(value) <= _SAME else least
    bias, acceleration = _correct(metric, inputs, rows, value, known)
    # Where an end of the bootstrap's interval lies when that of the widened one lies on 0.
    edge = value - value / widening
    # The levels between which the quantiles of the resamples, as np.quantile draws them, are there.
    places = np.linspace(0.0, 1.0, len(known))
    below, above = np.interp(edge, known, places), 1 - np.interp(-edge, -known[::-1], places)
    if known[0] > edge or known[-1] < edge:
        return least
    tails = []
    for share in (min(below, above), max(below, above)):
        tail = float(share)
        if np.isfinite(bias):
            z = float(norm.ppf(tail)) - bias
            scale = 1 + acceleration * z
            tail = float(norm.cdf(z / scale - bias)) if scale > 0 and np.isfinite(z) else float(z > 0)
        tails.append(tail)
    p = 1.0 if tails[0] <= 0.5 <= tails[1] else 2 * min(tails[1], 1 - tails[0])
    return float(min(1.0, max(least, p)))


def _accelerate(metric: Metric, inputs: list[NDArray], rows: list[NDArray]) -> float:
    """Skewness of the metric's jackknife over patients, a sixth of it; NaN if it does not vary."""
    keep = np.ones(len(inputs[0]), dtype=bool)
    left = []
    for of_patient in rows:
        keep[of_patient] = False
        left.append(metric(*[array[keep] for array in inputs]))
        keep[of_patient] = True
    known = np.array(left)[~np.isnan(left)]
    if len(known) < 2:
        return float("nan")
    off = known.mean() - known
    scale = float(np.sum(off**2))
    return float(np.sum(off**3) / (6 * scale**1.5)) if scale > 0 else float("nan")
