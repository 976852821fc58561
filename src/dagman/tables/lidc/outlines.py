"""Converts outlines on slices to voxels of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dagman.errors import ScanError, TableError
from dagman.scans.affine import Affine
from dagman.scans.dicom.geometry import order_planes
from dagman.scans.dicom.headers import read_header
from dagman.tables.lidc.annotations import Annotation, Outline


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The voxel grid of a DICOM series, the same as `read_series` returns, without the pixels."""

    affine: Affine
    shape: tuple[int, int, int]
    "Columns, rows, slices."
    slices: dict[str, int]
    "Index of the slice by SOPInstanceUID."
    heights_mm: np.ndarray
    "z coordinate of each slice."
    patient: str
    "The PatientID."


def read_grid(files: Sequence[Path]) -> Grid:
    """Read the grid of a series from its files, one slice each.

    Raises:
        ScanError: if the files do not form a volume.
    """
    headers = [read_header(path) for path in files]
    planes = [plane for header in headers for plane in header.planes]
    if len(planes) != len(headers):
        raise ScanError("is not stored as one slice per file", do="Give the series as distributed by TCIA")
    order, affine = order_planes(planes)
    return Grid(
        affine=affine,
        shape=(planes[0].columns, planes[0].rows, len(planes)),
        slices={headers[index].instance_uid: position for position, index in enumerate(order)},
        heights_mm=np.array([planes[index].position[2] for index in order]),
        patient=headers[0].patient_id,
    )


def draw_annotation(annotation: Annotation, grid: Grid) -> np.ndarray:
    """Return the flat indices (sorted, C order of `grid.shape`) of the voxels inside a reader's outlines, without holes.

    An outline runs through the first pixels outside the nodule (Armato et al. 2011), so it does not belong to the nodule. Only
    if nothing lies inside, the pixels of the outline are used.

    Raises:
        TableError: if an outline is not on a slice of the series, or extends beyond its slice.
    """
    filled: set[tuple[int, int, int]] = set()
    holes: set[tuple[int, int, int]] = set()
    lines: set[tuple[int, int, int]] = set()
    for outline in annotation.outlines:
        index = _find_slice(outline, grid)
        if (outline.points < 0).any() or (outline.points >= grid.shape[:2]).any():
            raise TableError(f"{annotation.name}: an outline extends beyond its slice", do="Download the series and its XML again")
        target = filled if outline.included else holes
        target.update((int(x), int(y), index) for x, y in fill_outline(outline.points))
        if outline.included:
            lines.update((int(x), int(y), index) for x, y in outline.points)
    voxels = sorted((filled - holes) or lines)
    return np.ravel_multi_index(tuple(np.array(voxels).T), grid.shape)


def fill_outline(points: np.ndarray) -> np.ndarray:
    """Return the pixels (M 2) strictly inside a closed line through pixel centres (`points`, N 2, whole numbers)."""
    low, high = points.min(0), points.max(0)
    x, y = (axis.ravel()[:, None] for axis in np.mgrid[low[0] : high[0] + 1, low[1] : high[1] + 1])
    (ax, ay), (bx, by) = points.T, np.roll(points, -1, axis=0).T
    turn = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
    within = (np.minimum(ax, bx) <= x) & (x <= np.maximum(ax, bx)) & (np.minimum(ay, by) <= y) & (y <= np.maximum(ay, by))
    on_line = ((turn == 0) & within).any(axis=1)
    # Even-odd rule: a ray to the right from a pixel inside crosses the line an odd number of times.
    crossed = ((ay > y) != (by > y)) & ((turn > 0) == (by > ay)) & (turn != 0)
    inside = (crossed.sum(axis=1) % 2 == 1) & ~on_line
    return np.column_stack([x[inside, 0], y[inside, 0]])


def _find_slice(outline: Outline, grid: Grid) -> int:
    if outline.instance_uid in grid.slices:
        return grid.slices[outline.instance_uid]
    # Some copies of the collection have new UIDs, but the slices' positions are unchanged.
    nearest = int(np.argmin(np.abs(grid.heights_mm - outline.height_mm)))
    if abs(grid.heights_mm[nearest] - outline.height_mm) > 0.5 * grid.affine.spacing[2]:
        raise TableError(
            f"an outline is at z = {outline.height_mm:g} mm, where the series has no slice", do="Download the series again"
        )
    return nearest
