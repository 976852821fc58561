"""Fills closed contours: by the even-odd rule within a plane, by shape-based interpolation between planes. Pure functions.

A voxel is inside if its centre is. All contours of a plane are counted together, so that a contour within another is a hole, and a
contour that enters and leaves through a slit (a keyhole) is filled correctly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_SAME_PLANE = 0.01
"""Distance in slices by which contours of the same plane may differ, since headers hold rounded numbers."""
_ON_SLICE = 0.1
"""Distance in slices up to which a plane counts as lying on a slice."""
_FINER = 3
_WIDEST_GAP = 1.5
"""Gap, as a multiple of the usual distance between planes, above which a structure is considered interrupted. [ours]"""


def fill_plane(contours: Iterable[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (X Y) of pixels whose centres lie inside an odd number of closed contours, each N x 2 in voxels."""
    flips = np.zeros((shape[0] + 1, shape[1]), dtype=bool)
    for points in contours:
        ends = np.roll(points, -1, axis=0)
        for (x0, y0), (x1, y1) in zip(points, ends, strict=True):
            # Half-open, so that a row through a corner crosses only one of the two edges that meet there.
            first, last = (int(np.ceil(value)) for value in (min(y0, y1), max(y0, y1)))
            rows = np.arange(max(first, 0), min(last, shape[1]))
            if len(rows):
                crossings = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
                flips[np.clip(np.ceil(crossings), 0, shape[0]).astype(int), rows] ^= True
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(flips, axis=0)[:-1]
    return inside


def fill_volume(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return the mask (X Y Z) of voxels inside closed contours, each N x 3 in voxels and within one plane of the grid.

    A slice between two planes with contours gets the interpolated shape. Beyond the first and last plane, the structure extends by
    half the distance between planes; if planes are as far apart as slices, this is only the slice itself.
    """
    planes, stacks = _sort_planes(contours)
    inside = np.zeros(shape, dtype=bool)
    masks: dict[int, NDArray[np.bool_]] = {}

    def fill(plane: int) -> NDArray[np.bool_]:
        if plane not in masks:
            masks[plane] = fill_plane(stacks[plane], shape[:2])
        return masks[plane]

    usual = max(1.0, float(np.median(np.diff(planes)))) if len(planes) > 1 else 1.0
    for index in range(max(0, int(np.floor(planes[0] - usual))), min(shape[2], int(np.ceil(planes[-1] + usual)) + 1)):
        nearest = int(np.abs(planes - index).argmin())
        above = int(np.searchsorted(planes, index))
        is_between = 0 < above < len(planes) and planes[above] - planes[above - 1] <= _WIDEST_GAP * usual
        if abs(planes[nearest] - index) <= _ON_SLICE:
            inside[:, :, index] = fill(nearest)
        elif is_between:
            weight = (index - planes[above - 1]) / (planes[above] - planes[above - 1])
            inside[:, :, index] = _fill_between(stacks[above - 1], stacks[above], weight, shape[:2])
        elif -usual / 2 <= index - planes[nearest] + 1e-6 < usual / 2:
            inside[:, :, index] = fill(nearest)
    return inside


def _sort_planes(contours: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], list[list[NDArray[np.float64]]]]:
    planes: list[float] = []
    stacks: list[list[NDArray[np.float64]]] = []
    for points in sorted(contours, key=lambda contour: float(contour[:, 2].mean())):
        height = float(points[:, 2].mean())
        if not planes or height - planes[-1] > _SAME_PLANE:
            planes.append(height)
            stacks.append([])
        stacks[-1].append(points[:, :2])
    return np.array(planes), stacks


def _fill_between(
    below: Sequence[NDArray[np.float64]], above: Sequence[NDArray[np.float64]], weight: float, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Interpolate the shapes of two planes by their signed distances (Raya and Udupa 1990, https://doi.org/10.1109/42.52980).

    Distances are computed on a grid three times as fine: on whole pixels, half of the border would be lost.
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
        _measure_distance(fill_plane([(contour - low) * _FINER + _FINER // 2 for contour in stack], fine))
        for stack in (below, above)
    )
    mixed = first * (1 - weight) + second * weight > 0
    inside[low[0] : high[0], low[1] : high[1]] = mixed[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER]
    return inside


def _measure_distance(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the distance of each pixel to the edge, in pixels, positive inside."""
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return distance
