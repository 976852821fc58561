"""Finds the body in a prepared scan, so that the air around it need not be stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Triple = tuple[int, int, int]

COARSE_MM = 6.0
"""Spacing of the coarse grid on which the body is searched; thinner objects (table top, blanket) are not body."""
MARGIN_MM = 10.0
"""Margin around the body, for the skin and details that the coarse grid misses."""
LEAST_SHARE = 0.1
"""Smallest size of a part of the body, relative to the largest part, such as a second leg, or arms next to the trunk."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Thresholds for stored values: tissue is above `tissue`, and a region to cut off must have a median below `air`."""

    tissue: float
    air: float


CT_LEVELS = Levels(tissue=-400.0, air=-950.0)
"""In HU. Lung is near -850, so a crop of little else than lung is not cut."""
SCALED_LEVELS = Levels(tissue=1000.0, air=500.0)
"""In stored MR values: 10 % and 5 % of the range."""


def find_body(voxels: NDArray[np.int16], spacing: float, levels: Levels) -> tuple[Triple, Triple]:
    """Find the box around the body: the large connected parts of soft tissue, with lungs and gut gas inside them.

    Each side of the grid is cut independently, and only if the region to cut off is air. A crop of only lung, or of a chest without
    its wall, loses nothing.

    Args:
        voxels: stored values, X Y Z.
        spacing: voxel size in mm.
        levels: thresholds for these values.

    Returns:
        Start and stop of the box in voxels; those of the whole grid if there is nothing to cut off.
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
    """Return the mask of the body (X Y Z, True inside): large parts of soft tissue, and what they enclose in each axial slice.

    It has the resolution of `find_body`'s coarse grid. If no tissue is found, everything counts as body.
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
    """Return the step of the coarse grid, the labels of connected parts of tissue on it, and the labels of the large parts."""
    step = max(1, round(COARSE_MM / spacing))
    coarse = voxels[::step, ::step, ::step] > levels.tissue
    # Opening removes the table. The body continues beyond the border of the grid, so nothing is eroded there.
    eroded = scipy.ndimage.binary_erosion(coarse, border_value=1)
    opened = scipy.ndimage.binary_dilation(eroded, mask=coarse)
    parts, _ = scipy.ndimage.label(opened)
    sizes = np.bincount(parts.ravel())[1:]
    return step, parts, 1 + np.flatnonzero(sizes >= LEAST_SHARE * sizes.max(initial=1))


def _is_air(slab: NDArray[np.int16], levels: Levels) -> bool:
    """Return whether the median is below the level of air, by counting, since computing a median would sort the slab."""
    below = slab < levels.air
    count, half = int(np.count_nonzero(below)), slab.size // 2
    if slab.size % 2 or count != half or not count:
        return count > half
    # Here the median is the mean of the two middle values, one below the level and one not.
    return (float(slab[below].max()) + float(slab[~below].min())) / 2 < levels.air
