"""Which readers' outlines are of one nodule. LIDC does not say: readers named their nodules independently.

1. The distance of two outlined nodules is the shortest one between their voxels, 0 where they overlap. Those within `reach` (the
   longest edge of a voxel) are joined, and what joins with either joins both (single linkage).
2. No reader may have two outlines in a group. Where one has, the reach is lowered for that group, a fifth at a time, until
   each group has at most one of each reader: this parts neighbours that do not touch.
3. Where outlines still conflict although only overlap joins them, some readers split what others outlined as one. If at most
   half of the group's readers split it, it is one nodule, and a reader's parts count as one reading. If more than half did,
   it is several: the splitting readers' outlines are joined by growing overlap (Dice) until no reader has two in a group, and
   each of the others' goes to the nodule that it overlaps most.

Steps 1 and 2 are as in pylidc (Hancock and Magnan 2016), which leaves step 3 to the user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_STEP = 0.8
_OVERLAP_ALONE = 0.05
"""Reach in mm, below any voxel, at which only overlap joins."""


def group_annotations(
    readers: Sequence[int], voxels: Sequence[np.ndarray], places_mm: Sequence[np.ndarray], reach: float
) -> list[list[int]]:
    """Groups of indices, one a nodule, by the rule above.

    `readers` has the reader of each annotation, `voxels` its flat voxel indices (unique), `places_mm` the same N 3 in mm;
    `reach` is in mm.
    """
    count = len(readers)
    gaps, overlaps = np.zeros((count, count)), np.eye(count)
    for a in range(count):
        for b in range(a + 1, count):
            shared = np.intersect1d(voxels[a], voxels[b], assume_unique=True).size
            overlaps[a, b] = overlaps[b, a] = 2 * shared / (voxels[a].size + voxels[b].size)
            gaps[a, b] = gaps[b, a] = 0 if shared else _measure_gap(places_mm[a], places_mm[b], reach)
    return sorted(_join_near(list(range(count)), readers, gaps, overlaps, reach)) if count else []


def _measure_gap(first: np.ndarray, second: np.ndarray, reach: float) -> float:
    apart = np.maximum(first.min(0) - second.max(0), second.min(0) - first.max(0))
    if apart.max() > reach:
        return float(apart.max())
    return float(cKDTree(first).query(second)[0].min())


def _join_near(members: list[int], readers: Sequence[int], gaps: np.ndarray, overlaps: np.ndarray, reach: float) -> list[list[int]]:
    groups: list[list[int]] = []
    for part in _connect(members, gaps <= reach):
        if not _find_splitters(part, readers):
            groups.append(part)
        elif reach > 0:
            shorter = reach * _STEP if reach * _STEP > _OVERLAP_ALONE else 0.0
            groups.extend(_join_near(part, readers, gaps, overlaps, shorter))
        else:
            groups.extend(_settle_split(part, readers, overlaps))
    return groups


def _settle_split(part: list[int], readers: Sequence[int], overlaps: np.ndarray) -> list[list[int]]:
    splitters = _find_splitters(part, readers)
    if 2 * len(splitters) <= len({readers[member] for member in part}):
        return [part]
    groups = _join_overlapping([member for member in part if readers[member] in splitters], readers, overlaps, 0.0)
    whole = [member for member in part if readers[member] not in splitters]
    nearest = [
        max(range(len(groups)), key=lambda index: max(overlaps[member, other] for other in groups[index])) for member in whole
    ]
    return [
        sorted(group + [member for member, at in zip(whole, nearest, strict=True) if at == index])
        for index, group in enumerate(groups)
    ]


def _join_overlapping(members: list[int], readers: Sequence[int], overlaps: np.ndarray, least: float) -> list[list[int]]:
    groups: list[list[int]] = []
    for part in _connect(members, overlaps > least):
        # Above 1 nothing overlaps but itself, so this ends.
        groups.extend(_join_overlapping(part, readers, overlaps, least + 0.05) if _find_splitters(part, readers) else [part])
    return groups


def _connect(members: list[int], joined: np.ndarray) -> list[list[int]]:
    _, component = connected_components(joined[np.ix_(members, members)], directed=False)
    return [[member for member, c in zip(members, component, strict=True) if c == index] for index in range(component.max() + 1)]


def _find_splitters(part: Sequence[int], readers: Sequence[int]) -> set[int]:
    """Readers with more than one outline in a group."""
    return {reader for reader, number in Counter(readers[member] for member in part).items() if number > 1}
