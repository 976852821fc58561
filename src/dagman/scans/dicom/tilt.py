"""Scans of a tilted gantry to a straight grid: each slice is shifted within its own plane to where it lies in the patient.

The slices keep their planes, so nothing is interpolated across them; the grid grows until it holds every slice whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dagman.scans.affine import Affine

_PERPENDICULAR_DEGREES = 0.5


def measure_tilt(affine: Affine) -> tuple[int, float] | None:
    """The axis that runs across the slices, and the degrees by which it leaves their normal; None where no axis does so alone.

    The other two axes must be perpendicular. Where that holds for two axes, as it does for a plain tilt, the file's last counts:
    both ways lead to a straight grid.
    """
    directions = affine.matrix[:3, :3] / np.array(affine.spacing)
    off = [abs(directions[:, (axis + 1) % 3] @ directions[:, (axis + 2) % 3]) for axis in range(3)]
    axis = next((axis for axis in (2, 1, 0) if np.degrees(np.arcsin(min(1.0, off[axis]))) <= _PERPENDICULAR_DEGREES), None)
    if axis is None:
        return None
    normal = np.cross(directions[:, (axis + 1) % 3], directions[:, (axis + 2) % 3])
    cosine = abs(normal @ directions[:, axis]) / np.linalg.norm(normal)
    return axis, float(np.degrees(np.arccos(min(1.0, cosine))))


def straighten_grid(values: NDArray, affine: Affine, axis: int, *, fill: float, nearest: bool = False) -> tuple[NDArray, Affine]:
    """Values (X Y Z) on the straight grid of the same slices, and its affine; voxels that no slice reaches are `fill`.

    axis: the one across the slices. Between voxels of a slice values are linear, rounded where they were whole numbers; with
    `nearest` they are those of the nearest voxel, as labels need. A world position keeps its value to within interpolation.
    """
    first, second = ((axis + 1) % 3, (axis + 2) % 3)
    plane, step = affine.matrix[:3, [first, second]], affine.matrix[:3, axis]
    # Voxels of the plane by which each slice lies beside the one before.
    shifts = np.linalg.lstsq(plane, step, rcond=None)[0]
    count = values.shape[axis]
    reach = shifts * (count - 1)
    low = np.floor(np.minimum(0, reach)).astype(int)
    high = np.ceil(np.maximum(0, reach)).astype(int)
    sizes = [values.shape[which] + int(end - start) for which, start, end in zip((first, second), low, high, strict=True)]
    slices = np.moveaxis(values, (axis, first, second), (0, 1, 2))
    straight = np.full((count, *sizes), fill, dtype=values.dtype)
    for index in range(count):
        for_first, for_second = (
            start + np.arange(size) - shift * index for start, size, shift in zip(low, sizes, shifts, strict=True)
        )
        moved = _sample(_sample(slices[index], for_first, fill, nearest).T, for_second, fill, nearest).T
        straight[index] = np.rint(moved) if np.issubdtype(values.dtype, np.integer) else moved
    matrix = affine.matrix.copy()
    matrix[:3, axis] = step - plane @ shifts
    matrix[:3, 3] += plane @ low
    return np.moveaxis(straight, (0, 1, 2), (axis, first, second)), Affine(matrix)


def _sample(rows: NDArray, places: NDArray[np.float64], fill: float, nearest: bool) -> NDArray:
    """Rows at places between them; half a voxel beyond the last row still belongs to it."""
    last = len(rows) - 1
    inside = (places >= -0.5) & (places <= last + 0.5)
    clipped = np.clip(places, 0, last)
    low = np.rint(clipped).astype(int) if nearest else np.minimum(clipped.astype(int), max(last - 1, 0))
    sampled = np.full((len(places), *rows.shape[1:]), fill, dtype=rows.dtype if nearest else np.float32)
    if nearest:
        sampled[inside] = rows[low[inside]]
        return sampled
    share = (clipped - low)[inside][:, None].astype(np.float32)
    sampled[inside] = rows[low[inside]] * (1 - share) + rows[np.minimum(low[inside] + 1, last)] * share
    return sampled
