"""Methods, measures, intervals and p as readers know them; the results' own keys where there is no better word."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dagman.evaluation.measures import find_measure
from dagman.evaluation.results import Measurement

NOT_KNOWN = "n/a"
"""In place of a number that is undefined or means nothing; the reason stands below the table."""
_NAMED = 4
"""Measures that a sentence on their intervals names."""
_STATED_APART = ("exact", "no interval", "undefined", NOT_KNOWN)
"""How intervals that `explain_intervals` explains begin."""

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
    """A method as readers know it."""
    return METHODS.get(method, method)


def name_measure(name: str) -> str:
    """A measure as readers know it; "dice:liver" is that of one structure."""
    label, structure = find_measure(name).label, name.partition(":")[2]
    return f"{label}, {structure}" if structure else label


def format_p(p: float) -> str:
    """Three digits, never a bare 0."""
    return "–" if p != p else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def format_interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """A value as 0.713 (0.602 to 0.801), +0.713 with `sign`; alone where it has no interval, n/a where it is undefined."""
    if not math.isfinite(value):
        return NOT_KNOWN
    show = "+.3f" if sign else ".3f"
    value = value if round(value, 3) else 0.0
    return f"{value:{show}} ({low:{show}} to {high:{show}})" if math.isfinite(low + high) else f"{value:{show}}"


def state_kinds(rows: Sequence[Measurement]) -> str:
    """How the intervals of a table came to be, each kind once, with its measures where there are several."""
    kinds: dict[str, tuple[str, list[str]]] = {}
    for row in rows:
        how = row.interval.how.partition("; only ")[0]
        if not how.startswith(_STATED_APART):
            # Kinds differ in their first words; how many resamples were skipped differs from row to row.
            names = kinds.setdefault(how.partition(" over ")[0], (how, []))[1]
            names += [name_measure(row.name)] if name_measure(row.name) not in names else []
    if len(kinds) < 2:
        return next((how for how, _ in kinds.values()), rows[0].interval.how if rows else "")
    return "; ".join(f"{how} ({', '.join(names)})" for how, names in kinds.values())


def explain_intervals(rows: Sequence[Measurement]) -> list[str]:
    """A sentence for each kind of interval among measurements that is not a plain bootstrap: exact, missing, or of few pairs."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        how = row.interval.how
        if how.startswith(_STATED_APART) or "; only " in how:
            cells.setdefault(how, []).append(f"{name_measure(row.name)} of {row.model} ({name_method(row.method)}, {row.subset})")
    return [f"{', '.join(names[:_NAMED])}{' and others' if len(names) > _NAMED else ''}: {how}." for how, names in cells.items()]
