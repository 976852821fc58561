"""Choose the examples in a clustering's report: the structure nearest to the centre of each k-means cluster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dagman.records.counts import count_noun
from dagman.tables.items import Item
from dagman.tasks.inputs.examples import Chosen

MOST = 12
"""Maximum number of clusters shown, the largest first, as a single file holds all examples."""


def choose_central(
    items: Sequence[Item], components: NDArray[np.float64], clusters: NDArray[np.int64], most: int = MOST
) -> list[Chosen]:
    """Choose the central member of each of the largest clusters; components n C, clusters n (below 0: noise)."""
    numbers, sizes = np.unique(clusters[clusters >= 0], return_counts=True)
    largest = sorted(numbers[np.argsort(-sizes, kind="stable")][:most].tolist())
    chosen = []
    for number in largest:
        members = np.flatnonzero(clusters == number)
        middle = components[members].mean(axis=0)
        nearest = items[int(members[np.argmin(np.linalg.norm(components[members] - middle, axis=1))])]
        label = f"a `{nearest.label}`, " if nearest.label else ""
        words = f"{label}is nearest to the middle of {count_noun(len(members), 'structure')}"
        chosen.append(Chosen(item=nearest, kind=f"cluster {number}", label=nearest.label or "", words=words))
    return chosen
