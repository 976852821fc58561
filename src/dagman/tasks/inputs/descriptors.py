"""What is compared with networks: a structure's size, raw voxels, and the histogram of intensities; numpy alone.

A network that does not beat these on an item has learned nothing that the task needed.
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
"""Side of the grid that raw voxels are averaged to."""
BINS = 32
"""Bins of the histogram, over the intensity range."""
_RANGE = (-1000.0, 500.0)
_DIRECTIONS = 256

SIZE_COLUMNS = ("diameter_mm", "longest_mm", "volume_ml")
PIXEL_COLUMNS = tuple(
    f"pixel_{x:02d}_{y:02d}_{z:02d}" for x in range(PIXEL_GRID) for y in range(PIXEL_GRID) for z in range(PIXEL_GRID)
)
HISTOGRAM_COLUMNS = tuple(f"bin_{number:02d}" for number in range(BINS))


def describe_size(opened: OpenItem, crop: ItemCrop) -> Vector:
    """Diameter of the sphere of equal volume (mm), longest axis (mm), and volume (ml) of the structure in the item's mask.

    Raises TableError for an item without a mask.
    """
    if opened.inside is None:
        raise TableError(
            "has no mask, which radiomics:size needs", where=opened.item.name, do="Fill the column 'mask', or omit radiomics:size"
        )
    return measure_size(opened.inside, opened.scan.spacing)


def measure_size(inside: NDArray[np.bool_], spacing: Sequence[float]) -> Vector:
    """Diameter (mm), longest axis (mm) and volume (ml) of what is True; `spacing` in mm along X, Y, Z.

    The longest axis is the largest width over 256 directions, from voxel edge to voxel edge: within 1 % of the true one.
    """
    volume = float(np.count_nonzero(inside)) * float(np.prod(spacing))
    # What lies farthest in any direction is the first or the last of its column.
    ends = np.stack([inside.argmax(axis=2), inside.shape[2] - 1 - inside[:, :, ::-1].argmax(axis=2)], axis=2)
    columns = np.argwhere(inside.any(axis=2))
    heights = ends[columns[:, 0], columns[:, 1]]
    points = np.column_stack([np.repeat(columns, 2, axis=0), heights.ravel()]) * np.asarray(spacing)
    directions = _spread_directions(_DIRECTIONS)
    along = points @ directions.T
    widths = along.max(axis=0) - along.min(axis=0) + np.abs(directions) @ np.asarray(spacing)
    # Edge to edge overshoots along diagonals by part of a voxel; no axis is longer than the box's diagonal.
    longest = float(min(widths.max(), np.linalg.norm(np.ptp(points, axis=0) + np.asarray(spacing))))
    return np.array([(6 * volume / np.pi) ** (1 / 3), longest, volume / 1000], dtype=np.float32)


def describe_pixels(opened: OpenItem, crop: ItemCrop) -> Vector:
    """The crop averaged to 16^3 cells, intensities in [0, 1]."""
    block = crop.voxels.shape[0] // PIXEL_GRID
    cells = _to_unit(crop).reshape(PIXEL_GRID, block, PIXEL_GRID, block, PIXEL_GRID, block)
    return cells.mean(axis=(1, 3, 5)).ravel()


def describe_histogram(opened: OpenItem, crop: ItemCrop) -> Vector:
    """Shares of 32 bins of intensity inside the structure (a ball around a point, all of a whole scan)."""
    counts, _ = np.histogram(_to_unit(crop)[crop.inside], bins=BINS, range=(0.0, 1.0))
    return (counts / max(counts.sum(), 1)).astype(np.float32)


DESCRIPTORS: dict[str, tuple[Describe, tuple[str, ...]]] = {
    "radiomics": (describe_size, SIZE_COLUMNS),
    "pixels": (describe_pixels, PIXEL_COLUMNS),
    "histogram": (describe_histogram, HISTOGRAM_COLUMNS),
}
"""How each kind of model without weights describes an item, and the names of its features."""


def _to_unit(crop: ItemCrop) -> NDArray[np.float32]:
    low, high = SCALED_RANGE if crop.modality == "MR" else _RANGE
    return np.clip((crop.voxels.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0.0, 1.0)


def _spread_directions(count: int) -> NDArray[np.float64]:
    """Unit vectors spread evenly over a half sphere (golden spiral)."""
    heights = (np.arange(count) + 0.5) / count
    turns = np.pi * (1 + 5**0.5) * np.arange(count)
    radii = np.sqrt(1 - heights**2)
    return np.stack([radii * np.cos(turns), radii * np.sin(turns), heights], axis=1)
