"""Closed contours to voxels: even-odd within a plane, shape-based between planes. Maths alone.

A voxel is inside where its centre is. Contours of one plane are counted together, so that a contour within another is a hole,
and one that walks in and out through a slit (a keyhole) is filled rightly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_SAME_PLANE = 0.01
"""Slices by which contours of one plane may differ: headers hold rounded numbers."""
_ON_SLICE = 0.1
"""Slices from a plane within which it is that slice's own."""
_FINER = 3
_WIDEST_GAP = 1.5
"""Usual distances between planes beyond which a structure is taken to be interrupted. [ours]"""


def fill_plane(contours: Iterable[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels (X Y) whose centres lie inside an odd number of closed contours, each N x 2 in voxels."""
    flips = np.zeros((shape[0] + 1, shape[1]), dtype=bool)
    for points in contours:
        ends = np.roll(points, -1, axis=0)
        for (x0, y0), (x1, y1) in zip(points, ends, strict=True):
            # Half-open: a row through a corner meets one of the two edges there, not both.
            first, last = (int(np.ceil(value)) for value in (min(y0, y1), max(y0, y1)))
            rows = np.arange(max(first, 0), min(last, shape[1]))
            if len(rows):
                crossings = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
                flips[np.clip(np.ceil(crossings), 0, shape[0]).astype(int), rows] ^= True
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(flips, axis=0)[:-1]
    return inside


def fill_volume(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Voxels (X Y Z) inside closed contours, each N x 3 in voxels of the grid and in one plane of it.

    A slice without contours of its own, between two planes that have some, holds the shape between theirs, and beyond the last
    plane the structure ends half a distance between planes away; where planes are as far apart as slices that is the slice alone.
    """
    planes, stacks = _sort_planes(contours)
    inside = np.zeros(shape, dtype=bool)
    masks: dict[int, NDArray[np.bool_]] = {}

    def fill(which: int) -> NDArray[np.bool_]:
        if which not in masks:
            masks[which] = fill_plane(stacks[which], shape[:2])
        return masks[which]

    usual = max(1.0, float(np.median(np.diff(planes)))) if len(planes) > 1 else 1.0
    for index in range(max(0, int(np.floor(planes[0] - usual))), min(shape[2], int(np.ceil(planes[-1] + usual)) + 1)):
        nearest = int(np.abs(planes - index).argmin())
        above = int(np.searchsorted(planes, index))
        between = 0 < above < len(planes) and planes[above] - planes[above - 1] <= _WIDEST_GAP * usual
        if abs(planes[nearest] - index) <= _ON_SLICE:
            inside[:, :, index] = fill(nearest)
        elif between:
            share = (index - planes[above - 1]) / (planes[above] - planes[above - 1])
            inside[:, :, index] = _fill_between(stacks[above - 1], stacks[above], share, shape[:2])
        elif -usual / 2 <= index - planes[nearest] + 1e-6 < usual / 2:
            inside[:, :, index] = fill(nearest)
    return inside


def _sort_planes(contours: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], list[list[NDArray[np.float64]]]]:
    planes: list[float] = []
    stacks: list[list[NDArray[np.float64]]] = []
    for points in sorted(contours, key=lambda one: float(one[:, 2].mean())):
        place = float(points[:, 2].mean())
        if not planes or place - planes[-1] > _SAME_PLANE:
            planes.append(place)
            stacks.append([])
        stacks[-1].append(points[:, :2])
    return np.array(planes), stacks


def _fill_between(
    below: Sequence[NDArray[np.float64]], above: Sequence[NDArray[np.float64]], share: float, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """The shape between two planes' shapes, by their signed distances (Raya and Udupa 1990, 10.1109/42.52980).

    Distances are between pixels thrice as fine: between whole ones half of the border would be lost.
    """
    points = np.concatenate([*below, *above])
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, shape)
    inside = np.zeros(shape, dtype=bool)
    if (high <= low).any():
        return inside
    columns, rows = (high - low).tolist()
    fine = (_FINER * columns, _FINER * rows)
    first, second = (
        _measure_distance(fill_plane([(one - low) * _FINER + _FINER // 2 for one in stack], fine)) for stack in (below, above)
    )
    mixed = first * (1 - share) + second * share > 0
    inside[low[0] : high[0], low[1] : high[1]] = mixed[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER]
    return inside


def _measure_distance(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Pixels to the edge, positive inside."""
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return distance
