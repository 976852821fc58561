"""Choose the examples in a regression's report: the items with the smallest, median and largest errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dagman.tables.items import Item
from dagman.tasks.inputs.examples import Chosen

EACH = 2
"""Number of items of each kind."""


def choose_by_error(items: Mapping[str, Item], rows: Sequence[Mapping[str, Any]], each: int = EACH) -> list[Chosen]:
    """Choose items by the error of their mean prediction; `rows` are those of predictions.csv for one model and method."""
    numbers: dict[str, list[float]] = {}
    for row in rows:
        numbers.setdefault(row["item"], []).append(row["predicted"])
    truth = {row["item"]: float(row["label"]) for row in rows}
    means = {name: float(np.mean(values)) for name, values in numbers.items()}
    order = sorted(means, key=lambda name: (abs(means[name] - truth[name]), name))
    middle = max(0, (len(order) - each) // 2)
    kinds = (("best", order[:each]), ("worst", order[::-1][:each]), ("median", order[middle : middle + each]))
    kind_of: dict[str, str] = {}
    for kind, names in kinds:
        for name in names:
            kind_of.setdefault(name, kind)
    chosen = []
    for kind in ("best", "median", "worst"):
        for name in (name for name in order if kind_of.get(name) == kind):
            off = means[name] - truth[name]
            words = f"is {truth[name]:.3g}, predicted {means[name]:.3g} ({abs(off):.2g} too {'high' if off > 0 else 'low'})"
            chosen.append(Chosen(item=items[name], kind=kind, label=f"{truth[name]:.6g}", words=words))
    return chosen
