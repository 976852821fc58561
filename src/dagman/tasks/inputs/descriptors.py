"""Baselines for comparison with networks: a structure's size, raw voxels, and the histogram of intensities.

A network that is not better than these has learned nothing useful for the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.items import OpenItem
from dagman.errors import TableError
from dagman.store.preparation import SCALED_RANGE
from dagman.tasks.inputs.item_crops import ItemCrop

Vector = NDArray[np.float32]
Describe = Callable[[OpenItem, ItemCrop], Vector]

PIXEL_GRID = 16
"""Side of the grid of cells over which raw voxels are averaged."""
BINS = 32
"""Number of bins of the histogram."""
_RANGE = (-1000.0, 500.0)
_DIRECTIONS = 256

SIZE_COLUMNS = ("diameter_mm", "longest_mm", "volume_ml")
PIXEL_COLUMNS = tuple(
    f"pixel_{x:02d}_{y:02d}_{z:02d}" for x in range(PIXEL_GRID) for y in range(PIXEL_GRID) for z in range(PIXEL_GRID)
)
HISTOGRAM_COLUMNS = tuple(f"bin_{number:02d}" for number in range(BINS))


def describe_size(opened: OpenItem, crop: ItemCrop) -> Vector:
    """Measure the structure in the item's mask: diameter of the sphere of equal volume (mm), longest axis (mm), volume (ml).

    Raises:
        TableError: The item has no mask.
    """
    if opened.inside is None:
        raise TableError(
            "has no mask, which radiomics:size needs", where=opened.item.name, do="Fill the column 'mask', or omit radiomics:size"
        )
    return measure_size(opened.inside, opened.scan.spacing)


def measure_size(inside: NDArray[np.bool_], spacing: Sequence[float]) -> Vector:
    """Measure diameter (mm), longest axis (mm) and volume (ml) of a mask; `spacing` in mm along X, Y, Z.

    The longest axis is the largest width over 256 directions, between outer edges of voxels; it is accurate to 1 %.
    """
    volume = float(np.count_nonzero(inside)) * float(np.prod(spacing))
    # The farthest voxel in any direction is the first or last of its column, so only these are needed.
    ends = np.stack([inside.argmax(axis=2), inside.shape[2] - 1 - inside[:, :, ::-1].argmax(axis=2)], axis=2)
    columns = np.argwhere(inside.any(axis=2))
    heights = ends[columns[:, 0], columns[:, 1]]
    points = np.column_stack([np.repeat(columns, 2, axis=0), heights.ravel()]) * np.asarray(spacing)
    directions = _spread_directions(_DIRECTIONS)
    along = points @ directions.T
    widths = along.max(axis=0) - along.min(axis=0) + np.abs(directions) @ np.asarray(spacing)
    # The width between edges overestimates diagonals by a fraction of a voxel; the box's diagonal is an upper bound.
    longest = float(min(widths.max(), np.linalg.norm(np.ptp(points, axis=0) + np.asarray(spacing))))
    return np.array([(6 * volume / np.pi) ** (1 / 3), longest, volume / 1000], dtype=np.float32)


def describe_pixels(opened: OpenItem, crop: ItemCrop) -> Vector:
    """Average the crop over 16^3 cells, with intensities in [0, 1]."""
    block = crop.voxels.shape[0] // PIXEL_GRID
    cells = _to_unit(crop).reshape(PIXEL_GRID, block, PIXEL_GRID, block, PIXEL_GRID, block)
    return cells.mean(axis=(1, 3, 5)).ravel()


def describe_histogram(opened: OpenItem, crop: ItemCrop) -> Vector:
    """Compute the intensity histogram (shares of 32 bins) inside the structure, the ball around a point, or the whole scan."""
    counts, _ = np.histogram(_to_unit(crop)[crop.inside], bins=BINS, range=(0.0, 1.0))
    return (counts / max(counts.sum(), 1)).astype(np.float32)


DESCRIPTORS: dict[str, tuple[Describe, tuple[str, ...]]] = {
    "radiomics": (describe_size, SIZE_COLUMNS),
    "pixels": (describe_pixels, PIXEL_COLUMNS),
    "histogram": (describe_histogram, HISTOGRAM_COLUMNS),
}
"""For each kind of baseline, the function that describes an item, and the names of its features."""


def _to_unit(crop: ItemCrop) -> NDArray[np.float32]:
    low, high = SCALED_RANGE if crop.modality == "MR" else _RANGE
    return np.clip((crop.voxels.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0.0, 1.0)


def _spread_directions(count: int) -> NDArray[np.float64]:
    """Spread unit vectors evenly over a half sphere (golden spiral)."""
    heights = (np.arange(count) + 0.5) / count
    turns = np.pi * (1 + 5**0.5) * np.arange(count)
    radii = np.sqrt(1 - heights**2)
    return np.stack([radii * np.cos(turns), radii * np.sin(turns), heights], axis=1)
