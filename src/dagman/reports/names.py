"""Format methods, measures, intervals and p-values for readers; names without an entry are shown as they are in the results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dagman.evaluation.measures import find_measure
from dagman.evaluation.results import Measurement

NOT_KNOWN = "n/a"
"""Replaces a number that is undefined or meaningless; the reason is given below the table."""
_NAMED = 4
"""Measures that are named in a sentence about their intervals."""
_STATED_APART = ("exact", "no interval", "undefined", NOT_KNOWN)
"""Prefixes of `Interval.how` for the intervals that `explain_intervals` explains."""

METHODS = {
    "linear": "linear probe",
    "knn": "k-NN",
    "finetune": "fine-tuned",
    "ridge": "ridge probe",
    "cox": "Cox, elastic net",
    "forest": "random survival forest",
    "kaplan-meier": "Kaplan-Meier",
    "features": "frozen features",
    "hdbscan": "HDBSCAN",
    "kmeans": "k-means",
    "umap": "UMAP",
    "pca": "principal components",
}


def name_method(method: str) -> str:
    """Return the display name of a method."""
    return METHODS.get(method, method)


def name_measure(name: str) -> str:
    """Return the display name of a measure; "dice:liver" is the Dice of one structure."""
    label, structure = find_measure(name).label, name.partition(":")[2]
    return f"{label}, {structure}" if structure else label


def format_p(p: float) -> str:
    """Format a p-value with three decimals; "< 0.001" rather than 0, and a dash for NaN."""
    return "–" if p != p else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def format_interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """Format a value with its interval, such as "0.713 (0.602 to 0.801)".

    Args:
        value: The value; "n/a" is shown if it is not finite.
        low, high: The interval; omitted if either end is not finite.
        sign: Whether to show a plus sign.
    """
    if not math.isfinite(value):
        return NOT_KNOWN
    show = "+.3f" if sign else ".3f"
    value = value if round(value, 3) else 0.0
    return f"{value:{show}} ({low:{show}} to {high:{show}})" if math.isfinite(low + high) else f"{value:{show}}"


def state_kinds(rows: Sequence[Measurement]) -> str:
    """State how the intervals of a table were computed: each method once, followed by its measures if there are several methods."""
    kinds: dict[str, tuple[str, list[str]]] = {}
    for row in rows:
        how = row.interval.how.partition("; only ")[0]
        if not how.startswith(_STATED_APART):
            # Methods differ in their first words; the number of skipped resamples differs from row to row.
            names = kinds.setdefault(how.partition(" over ")[0], (how, []))[1]
            names += [name_measure(row.name)] if name_measure(row.name) not in names else []
    if len(kinds) < 2:
        return next((how for how, _ in kinds.values()), rows[0].interval.how if rows else "")
    return "; ".join(f"{how} ({', '.join(names)})" for how, names in kinds.values())


def explain_intervals(rows: Sequence[Measurement]) -> list[str]:
    """Explain every interval that is not a plain bootstrap (exact, missing, or from few pairs), one sentence per kind."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        how = row.interval.how
        if how.startswith(_STATED_APART) or "; only " in how:
            cells.setdefault(how, []).append(f"{name_measure(row.name)} of {row.model} ({name_method(row.method)}, {row.subset})")
    return [f"{', '.join(names[:_NAMED])}{' and others' if len(names) > _NAMED else ''}: {how}." for how, names in cells.items()]
