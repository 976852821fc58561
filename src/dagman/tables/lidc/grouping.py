"""Groups the outlines that different readers drew of the same nodule, since LIDC's readers named their nodules independently.

1. The distance between two outlined nodules is the shortest one between their voxels, and 0 if they overlap. Nodules closer than
   `reach` (the longest edge of a voxel) are grouped by single linkage.
2. A group may contain one outline per reader. If a reader has more, the reach is lowered for that group in steps of a fifth, until
   each resulting group has at most one per reader. This separates neighbours that do not touch.
3. If outlines still conflict when only overlap links them, some readers split what others outlined as one nodule. If at most half
   of the group's readers split it, it counts as one nodule, and a reader's parts as one reading. If more than half did, it counts
   as several: the outlines of the splitting readers are linked at an increasing overlap (Dice) until no reader has two in a group,
   and each outline of the other readers is assigned to the nodule that it overlaps most.

Steps 1 and 2 follow pylidc (Hancock and Magnan 2016), which leaves step 3 to the user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_STEP = 0.8
_LEAST_REACH = 0.05
"""Reach in mm, smaller than any voxel, below which only overlap links outlines."""


def group_annotations(
    readers: Sequence[int], voxels: Sequence[np.ndarray], positions_mm: Sequence[np.ndarray], reach: float
) -> list[list[int]]:
    """Group annotations by nodule, following the rules above.

    Args:
        readers: reader of each annotation.
        voxels: flat indices of the voxels of each annotation, without duplicates.
        positions_mm: coordinates of these voxels in mm, N 3.
        reach: largest distance in mm at which annotations are linked.

    Returns:
        For each nodule, the indices of its annotations.
    """
    count = len(readers)
    gaps, overlaps = np.zeros((count, count)), np.eye(count)
    for a in range(count):
        for b in range(a + 1, count):
            shared = np.intersect1d(voxels[a], voxels[b], assume_unique=True).size
            overlaps[a, b] = overlaps[b, a] = 2 * shared / (voxels[a].size + voxels[b].size)
            gaps[a, b] = gaps[b, a] = 0 if shared else _measure_gap(positions_mm[a], positions_mm[b], reach)
    return sorted(_link_near(list(range(count)), readers, gaps, overlaps, reach)) if count else []


def _measure_gap(first: np.ndarray, second: np.ndarray, reach: float) -> float:
    apart = np.maximum(first.min(0) - second.max(0), second.min(0) - first.max(0))
    if apart.max() > reach:
        return float(apart.max())
    return float(cKDTree(first).query(second)[0].min())


def _link_near(members: list[int], readers: Sequence[int], gaps: np.ndarray, overlaps: np.ndarray, reach: float) -> list[list[int]]:
    groups: list[list[int]] = []
    for part in _find_components(members, gaps <= reach):
        if not _find_splitters(part, readers):
            groups.append(part)
        elif reach > 0:
            shorter = reach * _STEP if reach * _STEP > _LEAST_REACH else 0.0
            groups.extend(_link_near(part, readers, gaps, overlaps, shorter))
        else:
            groups.extend(_resolve_split(part, readers, overlaps))
    return groups


def _resolve_split(part: list[int], readers: Sequence[int], overlaps: np.ndarray) -> list[list[int]]:
    splitters = _find_splitters(part, readers)
    if 2 * len(splitters) <= len({readers[member] for member in part}):
        return [part]
    groups = _link_overlapping([member for member in part if readers[member] in splitters], readers, overlaps, 0.0)
    unsplit = [member for member in part if readers[member] not in splitters]
    nearest = [
        max(range(len(groups)), key=lambda index: max(overlaps[member, other] for other in groups[index])) for member in unsplit
    ]
    return [
        sorted(group + [member for member, chosen in zip(unsplit, nearest, strict=True) if chosen == index])
        for index, group in enumerate(groups)
    ]


def _link_overlapping(members: list[int], readers: Sequence[int], overlaps: np.ndarray, least: float) -> list[list[int]]:
    groups: list[list[int]] = []
    for part in _find_components(members, overlaps > least):
        # The recursion ends, since no two outlines have a Dice above 1.
        groups.extend(_link_overlapping(part, readers, overlaps, least + 0.05) if _find_splitters(part, readers) else [part])
    return groups


def _find_components(members: list[int], joined: np.ndarray) -> list[list[int]]:
    _, component = connected_components(joined[np.ix_(members, members)], directed=False)
    return [[member for member, c in zip(members, component, strict=True) if c == index] for index in range(component.max() + 1)]


def _find_splitters(part: Sequence[int], readers: Sequence[int]) -> set[int]:
    """The readers with more than one outline in a group."""
    return {reader for reader, number in Counter(readers[member] for member in part).items() if number > 1}
