"""Resamples scans of a tilted gantry to an orthogonal grid by shifting each slice within its own plane.

Slices keep their planes, so nothing is interpolated between slices; the grid is enlarged to hold every slice completely.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dagman.scans.affine import Affine

_PERPENDICULAR_DEGREES = 0.5


def measure_tilt(affine: Affine) -> tuple[int, float] | None:
    """Return the slice axis and its angle to the slices' normal, in degrees; None if more than one axis is tilted.

    The other two axes must be perpendicular to each other. If two axes qualify, as they do for a simple tilt, the file's last one
    is taken; both lead to an orthogonal grid.
    """
    directions = affine.matrix[:3, :3] / np.array(affine.spacing)
    cosines = [abs(directions[:, (axis + 1) % 3] @ directions[:, (axis + 2) % 3]) for axis in range(3)]
    axis = next((axis for axis in (2, 1, 0) if np.degrees(np.arcsin(min(1.0, cosines[axis]))) <= _PERPENDICULAR_DEGREES), None)
    if axis is None:
        return None
    normal = np.cross(directions[:, (axis + 1) % 3], directions[:, (axis + 2) % 3])
    cosine = abs(normal @ directions[:, axis]) / np.linalg.norm(normal)
    return axis, float(np.degrees(np.arccos(min(1.0, cosine))))


def straighten_grid(values: NDArray, affine: Affine, axis: int, *, fill: float, nearest: bool = False) -> tuple[NDArray, Affine]:
    """Resample values to the orthogonal grid of the same slices; a world position keeps its value, up to interpolation.

    Args:
        values: X Y Z.
        affine: affine of `values`.
        axis: the slice axis.
        fill: value of voxels outside all slices.
        nearest: take the nearest voxel, as needed for labels, instead of interpolating linearly (integers are rounded).

    Returns:
        The resampled values and their affine.
    """
    first, second = ((axis + 1) % 3, (axis + 2) % 3)
    plane, step = affine.matrix[:3, [first, second]], affine.matrix[:3, axis]
    # The shift of each slice relative to the previous one, in voxels of the plane.
    shifts = np.linalg.lstsq(plane, step, rcond=None)[0]
    count = values.shape[axis]
    reach = shifts * (count - 1)
    low = np.floor(np.minimum(0, reach)).astype(int)
    high = np.ceil(np.maximum(0, reach)).astype(int)
    sizes = [values.shape[which] + int(end - start) for which, start, end in zip((first, second), low, high, strict=True)]
    slices = np.moveaxis(values, (axis, first, second), (0, 1, 2))
    resampled = np.full((count, *sizes), fill, dtype=values.dtype)
    for index in range(count):
        for_first, for_second = (
            start + np.arange(size) - shift * index for start, size, shift in zip(low, sizes, shifts, strict=True)
        )
        moved = _sample(_sample(slices[index], for_first, fill, nearest).T, for_second, fill, nearest).T
        resampled[index] = np.rint(moved) if np.issubdtype(values.dtype, np.integer) else moved
    matrix = affine.matrix.copy()
    matrix[:3, axis] = step - plane @ shifts
    matrix[:3, 3] += plane @ low
    return np.moveaxis(resampled, (0, 1, 2), (axis, first, second)), Affine(matrix)


def _sample(rows: NDArray, indices: NDArray[np.float64], fill: float, nearest: bool) -> NDArray:
    """Sample rows at fractional indices; the outer half of the first and last voxel still counts as inside."""
    last = len(rows) - 1
    inside = (indices >= -0.5) & (indices <= last + 0.5)
    clipped = np.clip(indices, 0, last)
    low = np.rint(clipped).astype(int) if nearest else np.minimum(clipped.astype(int), max(last - 1, 0))
    sampled = np.full((len(indices), *rows.shape[1:]), fill, dtype=rows.dtype if nearest else np.float32)
    if nearest:
        sampled[inside] = rows[low[inside]]
        return sampled
    share = (clipped - low)[inside][:, None].astype(np.float32)
    sampled[inside] = rows[low[inside]] * (1 - share) + rows[np.minimum(low[inside] + 1, last)] * share
    return sampled
