"""Confidence intervals over patients, paired comparisons of models, and corrections for multiple comparisons.

Items of one patient are not independent, so the bootstrap resamples patients with all their items. A difference, its interval
and its p come from the same statistic: p corresponds to the level at which the interval just reaches 0.

With out-of-fold scores, resampling patients ignores that models trained on other patients would differ. Intervals are therefore
widened by the variance of a repeated cross-validation (Nadeau and Bengio, Machine Learning 2003; decision 0022).
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
"""A function of arrays whose first axis is items; returns NaN if undefined."""
_SAME = 1e-12
"""Resampled values closer than this differ only by rounding."""
FEWEST_PATIENTS = 5
"""Fewer patients have too few distinct resamples for an interval; two patients have three. [ours]"""
FEWEST_PAIRS = 100
"""An AUC or C from fewer comparable pairs is reported with their number: each pair then moves it by more than 0.01. [ours]"""
FEW_PATIENTS = 50
"""With fewer, a verdict carries a warning: with 43, the interval of an AUC of 0.69 is 0.46 wide (decision 0022). [ours]"""
LEAST_IN_GROUP = 10
"""Smallest group for which an observed share is compared with the predicted one; one item is then a tenth. [ours]"""
REFITTING = "widened for refitting (Nadeau & Bengio)"
"""Wording for intervals that account for models trained on other patients."""
POWER = 0.8
"""Power at which `find_detectable` defines the smallest detectable difference."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its confidence interval; bounds are NaN if there is none."""

    value: float
    low: float
    high: float
    level: float
    items: int
    patients: int
    how: str
    "The method in words, with the number of skipped resamples, or why there is no interval."


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """First model minus second on the same items; p is two-sided and not corrected for multiple comparisons."""

    p: float

    @property
    def detectable(self) -> float:
        """The smallest detectable difference (`find_detectable`) of a normal statistic; NaN without an interval."""
        return find_detectable((self.high - self.low) / 2, level=self.level)


def find_detectable(half: float, *, level: float = 0.95, freedom: float = math.inf) -> float:
    """Compute the smallest true difference that is significant in 80 % of repetitions.

    It is (t for the level + t for 80 % power) standard errors. With few degrees of freedom the actual power is slightly lower:
    73 % with one, 79 % with four.

    Args:
        half: Half the width of the difference's confidence interval.
        level: Level of that interval.
        freedom: Degrees of freedom of the t distribution; infinite for the normal distribution.
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
    """Compute the BCa bootstrap interval of `metric(*arrays)` over patients (Efron, JASA 1987).

    If bias or acceleration is undefined, the percentile interval is used. There is no interval (NaN) with fewer than
    FEWEST_PATIENTS, or if every resample gives the same value. `Interval.how` states each of these cases.

    Args:
        metric: Function of `arrays`; resamples on which it is NaN (only one class, for example) are skipped and counted.
        arrays: Arrays whose first axis is items.
        patients: Patient of each item.
        level: Confidence level.
        draws: Number of resamples.
        seed: Seed of the resamples.
        widening: Factor by which the distance of both ends from the value is multiplied (`find_widening`).
        limits: Smallest and largest possible value; the interval is truncated there.
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
    """Compute `metric(labels, first) - metric(labels, second)` with a BCa interval, using the same resamples for both models.

    p inverts the interval: it is 1 minus the largest level at which the interval excludes 0, and at least 2 / (resamples + 1)
    (Davison and Hinkley 1997, 4.4). Hence p < 1 - level if and only if the interval excludes 0. With `widening`
    (see `bootstrap_interval`), p refers to the widened interval.
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
    """Add the number of pairs per repeat to `interval.how` if it is below FEWEST_PAIRS; `of` is "items" or "patients"."""
    if pairs >= FEWEST_PAIRS:
        return interval
    return replace(interval, how=f"{interval.how}; only {count_noun(pairs, 'pair')} of {of} compared in each repeat")


def bound_proportion(right: float, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Compute the exact interval of the proportion `right` / `count` (Clopper and Pearson, Biometrika 1934); NaN for a count of 0.

    `right` need not be an integer: a patient for whom some of several items are right counts as a fraction.
    """
    if not count:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, right, count - right + 1)) if right > 0 else 0.0
    high = float(beta.ppf(1 - tail, right + 1, count - right)) if right < count else 1.0
    return low, high


def bound_edge(interval: Interval, shares: ArrayLike, patients: ArrayLike, *, refitted: bool = False) -> Interval:
    """Replace the interval of a proportion by the exact one if the bootstrap cannot give one: at 0 or 1, or with few patients.

    Args:
        interval: Interval of the proportion; returned unchanged if the bootstrap applies.
        shares: How often each item was right (n), in [0, 1]; NaN for items that do not count.
        patients: Patient of each item.
        refitted: Whether the scores come from models of several folds; the exact interval does not account for it.
    """
    shares, patients = np.asarray(shares, dtype=np.float64), np.asarray(patients)
    known = ~np.isnan(shares)
    own = [float(shares[known & (patients == patient)].mean()) for patient in np.unique(patients[known])]
    right = float(np.sum(own))
    edge = right < 1e-9 or right > len(own) - 1e-9
    if not own or not (edge or len(own) < FEWEST_PATIENTS):
        return interval
    low, high = bound_proportion(round(right) if edge else right, len(own), level=interval.level)
    how = f"exact (Clopper-Pearson) over {count_noun(len(own), 'patient')}{', without refitting' if refitted else ''}"
    return replace(interval, low=low, high=high, how=how)


def correct_for_refitting(folds: int, repeats: int) -> float:
    """Return the factor by which refitting increases the variance: 1 / repeats + folds / (folds - 1).

    If the means of single folds have variance s^2, the mean over all folds and repeats has variance
    (1 / (folds repeats) + n_test / n_train) s^2 (Nadeau and Bengio, Machine Learning 2003; Bouckaert and Frank, PAKDD 2004), while
    a single repeat with its models taken as given suggests s^2 / folds. The factor is the ratio of the two. It is 1 for a
    single split, where the evaluated model is the model of interest.
    """
    return 1 / repeats + folds / (folds - 1) if folds > 1 else 1.0


def list_divisions(folds: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """List the distinct divisions of the items into folds, each as its number of folds and its columns of `folds`.

    folds: n R, the test fold of each item, -1 for none. Few-shot draws of one repeat share a division.
    """
    _, division = np.unique(folds, axis=1, return_inverse=True)
    columns = [np.flatnonzero(np.ravel(division) == index) for index in range(int(np.max(division)) + 1)]
    return [(len(np.unique(folds[folds[:, own[0]] >= 0, own[0]])), own) for own in columns]


def find_widening(prepare: Callable[[NDArray[np.int64]], Metric], folds: NDArray[np.int64], patients: ArrayLike) -> float:
    """Find the factor by which refitting widens an interval over patients; 1 for a single split.

    Repeats average out the dependence on the division, so an interval over patients shrinks as repeats are added, but the
    variance due to refitting does not. The variance is therefore that of a single division (mean over divisions, by the
    jackknife) times `correct_for_refitting`; the result is the square root of its ratio to the variance over all divisions.

    Args:
        prepare: Given columns of `folds`, returns their measure as a function of rows of items.
        folds: n R, the test fold of each item, -1 for none.
        patients: Patient of each item.
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
    """Estimate a measure's variance by leaving out one patient at a time; NaN if it is defined for fewer than two of them."""
    left = (
        np.array([measure(np.concatenate([*rows[:i], *rows[i + 1 :]])) for i in range(len(rows))])
        if len(rows) > 1
        else np.array([])
    )
    known = left[~np.isnan(left)]
    return float((len(known) - 1) * np.var(known)) if len(known) > 1 else float("nan")


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons (Holm, Scand. J. Statist. 1979), in the order given; NaNs stay, uncounted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected


def rows_of_patients(patients: ArrayLike) -> list[NDArray[np.int64]]:
    """List the rows of each patient, with patients in sorted order, so that draws do not depend on the order of rows."""
    values, codes = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes, minlength=len(values)))[:-1])


def draw_samples(inputs: list[NDArray], rows: list[NDArray], draws: int, seed: int) -> Iterator[list[NDArray]]:
    """Yield the arrays of each resample of patients.

    Args:
        inputs: Arrays whose first axis is items.
        rows: Rows of each patient, from `rows_of_patients`.
        draws: Number of resamples.
        seed: Seed; the draws depend only on it and on the number of patients.
    """
    patients = _draw_patients(len(rows), draws, seed)
    # With one row per patient, patients index rows directly; concatenating row by row would take most of the time.
    single = np.concatenate(rows) if all(len(row) == 1 for row in rows) else None
    for drawn in patients:
        picked = np.concatenate([rows[i] for i in drawn]) if single is None else single[drawn]
        yield [array[picked] for array in inputs]


@lru_cache(maxsize=4)
def _draw_patients(count: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Draw the patients of each resample (draws, count); cached, because a table has hundreds of measures of the same patients."""
    return generator(seed, "bootstrap").integers(count, size=(draws, count))


def _resample(metric: Metric, inputs: list[NDArray], rows: list[NDArray], draws: int, seed: int) -> Floats:
    if len(rows) < FEWEST_PATIENTS:
        # `_bound` will not give an interval.
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
        # A measure at the limit of its range can move only one way in a resample, so that the interval would exclude its value.
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
    """Compute BCa's bias and acceleration; both are NaN if either is undefined."""
    bias = float(norm.ppf(np.mean(known < value) + np.mean(known == value) / 2))
    acceleration = _accelerate(metric, inputs, rows)
    return (bias, acceleration) if np.isfinite(bias) and np.isfinite(acceleration) else (float("nan"), float("nan"))


def _find_p(metric: Metric, inputs: list[NDArray], rows: list[NDArray], value: float, values: Floats, widening: float) -> float:
    """Compute the two-sided p for a true value of 0: the level at which one end of the interval of `_bound` is 0."""
    known = np.sort(values[~np.isnan(values)])
    if len(rows) < FEWEST_PATIENTS or not len(known) or math.isnan(value):
        return float("nan")
    least = min(1.0, 2 / (len(known) + 1))
    if np.ptp(known) <= _SAME * max(1.0, abs(value)):
        return 1.0 if abs(value) <= _SAME else least
    bias, acceleration = _correct(metric, inputs, rows, value, known)
    # The end of the bootstrap interval that corresponds to a widened interval ending at 0.
    edge = value - value / widening
    # Levels at which the quantile of the resamples equals `edge`, interpolated like np.quantile.
    levels = np.linspace(0.0, 1.0, len(known))
    below, above = np.interp(edge, known, levels), 1 - np.interp(-edge, -known[::-1], levels)
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
    """Compute BCa's acceleration, a sixth of the skewness of the jackknife over patients; NaN if the jackknife does not vary."""
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
