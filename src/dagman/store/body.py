"""Where the body lies in a prepared scan, so that the air around it is not stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Triple = tuple[int, int, int]

COARSE_MM = 6.0
"""The body is looked for on every n-th voxel, about this far apart; thinner things (table top, blanket) are not body."""
MARGIN_MM = 10.0
"""Kept around the body: skin and what the coarse grid misses."""
LEAST_SHARE = 0.1
"""A part this large next to the largest one is body too: both legs, arms beside the trunk."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Stored values: tissue lies above `tissue`; what is cut off must have a median below `air`."""

    tissue: float
    air: float


CT_LEVELS = Levels(tissue=-400.0, air=-950.0)
"""HU. Lung lies near -850: a crop that holds little else is left whole."""
SCALED_LEVELS = Levels(tissue=1000.0, air=500.0)
"""Stored MR values: 10 and 5 % of the range."""


def find_body(voxels: NDArray[np.int16], spacing: float, levels: Levels) -> tuple[Triple, Triple]:
    """(start, stop) of the box around the body, voxels X Y Z `spacing` mm apart; the whole grid when nothing is to be cut.

    The box surrounds the large connected parts of soft tissue, lungs and gut gas inside them. Each side is cut on its own,
    and only if what falls off is air: a crop of lung alone, or of a chest without its wall, loses nothing.
    """
    start, stop = [0, 0, 0], list(voxels.shape)
    inner_start, inner_stop = _surround_tissue(voxels, spacing, levels)
    for axis in range(3):
        along = np.moveaxis(voxels, axis, 0)
        if _is_air(along[: inner_start[axis]], levels):
            start[axis] = inner_start[axis]
        if _is_air(along[inner_stop[axis] :], levels):
            stop[axis] = inner_stop[axis]
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def mask_body(voxels: NDArray[np.int16], spacing: float, levels: Levels) -> NDArray[np.bool_]:
    """True inside the body, X Y Z: its large parts of soft tissue and, axial slice by slice, what they enclose (lung, gut).

    On the coarse grid of `find_body`; where nothing is found, everything is body.
    """
    step, parts, large = _find_parts(voxels, spacing, levels)
    if not large.size:
        return np.ones(voxels.shape, dtype=bool)
    body = np.isin(parts, large)
    for level in range(body.shape[2]):
        body[:, :, level] = scipy.ndimage.binary_fill_holes(body[:, :, level])
    for axis, size in enumerate(voxels.shape):
        body = np.take(body, np.minimum((np.arange(size) + step // 2) // step, body.shape[axis] - 1), axis=axis)
    return body


def _surround_tissue(voxels: NDArray[np.int16], spacing: float, levels: Levels) -> tuple[list[int], list[int]]:
    step, parts, large = _find_parts(voxels, spacing, levels)
    if not large.size:
        return [0, 0, 0], list(voxels.shape)
    boxes = [box for number, box in enumerate(scipy.ndimage.find_objects(parts), start=1) if number in large]
    margin = step + round(MARGIN_MM / spacing)
    start = [max(0, min(box[axis].start for box in boxes) * step - margin) for axis in range(3)]
    stop = [min(size, (max(box[axis].stop for box in boxes) - 1) * step + 1 + margin) for axis, size in enumerate(voxels.shape)]
    return start, stop


def _find_parts(voxels: NDArray[np.int16], spacing: float, levels: Levels) -> tuple[int, NDArray[np.int32], NDArray[np.int64]]:
    """Every how many voxels was looked, the connected parts of tissue there (0: none), and the numbers of the large ones."""
    step = max(1, round(COARSE_MM / spacing))
    coarse = voxels[::step, ::step, ::step] > levels.tissue
    # Opening takes off the table. At the border of the grid the body goes on, so nothing is worn off there.
    eroded = scipy.ndimage.binary_erosion(coarse, border_value=1)
    opened = scipy.ndimage.binary_dilation(eroded, mask=coarse)
    parts, _ = scipy.ndimage.label(opened)
    sizes = np.bincount(parts.ravel())[1:]
    return step, parts, 1 + np.flatnonzero(sizes >= LEAST_SHARE * sizes.max(initial=1))


def _is_air(slab: NDArray[np.int16], levels: Levels) -> bool:
    """Whether the median lies below the level of air; counted, since a median would sort the slab."""
    below = slab < levels.air
    count, half = int(np.count_nonzero(below)), slab.size // 2
    if slab.size % 2 or count != half or not count:
        return count > half
    # The median is the mean of two values, of which one lies on each side.
    return (float(slab[below].max()) + float(slab[~below].min())) / 2 < levels.air
