"""Verdicts on whether a model is better than chance, with the number of patients and repeats."""

from __future__ import annotations

import math

from dagman.evaluation.results import Measurement, Results
from dagman.evaluation.statistics import FEW_PATIENTS
from dagman.records.counts import count_noun
from dagman.reports.names import format_interval, name_measure, name_method
from dagman.reports.page import Verdict


def judge_against_chance(row: Measurement, results: Results, *, chance: float, called: str) -> Verdict:
    """Judge by its confidence interval whether a measure exceeds chance; larger values must be better.

    Args:
        row: The measurement.
        results: The results that contain it.
        chance: Value of a model without information.
        called: What readers see for it, such as "chance (0.5)".
    """
    interval = row.interval
    value = format_interval(interval.value, interval.low, interval.high)
    lead = f"`{row.model}`, {name_method(row.method)}: {name_measure(row.name)} {value}"
    if not math.isfinite(interval.low + interval.high):
        return Verdict("warn", f"{lead}; {interval.how}.")
    repeats, folds = _count_splits(results)
    over = f"over {count_noun(interval.patients, 'patient')}" + (f" and {count_noun(repeats, 'repeat')}" if folds > 1 else "")
    few = interval.patients < FEW_PATIENTS
    again = " The result depends on the folds: `--repeats 5` averages over several." if folds > 1 and repeats == 1 else ""
    if interval.low > chance:
        wide = " With so few patients, rely on the interval rather than the value." if few else ""
        return Verdict("ok", f"{lead}, better than {called} by its confidence interval {over}.{wide}{again}")
    if interval.high < chance:
        return Verdict(
            "bad", f"{lead}, worse than {called} by its confidence interval {over}. Check for data leakage, or a misread column."
        )
    with_few = " with so few patients" if few else ""
    return Verdict("warn", f"{lead}. {over.capitalize()} this cannot be distinguished from {called}{with_few}.{again}")


def _count_splits(results: Results) -> tuple[int, int]:
    """Count repeats and folds."""
    return int(results.splits["repeat"].nunique()), int(results.splits["fold"].nunique())
