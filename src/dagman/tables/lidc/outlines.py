"""Outlines on slices to voxels of a scan."""

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
    """The voxels of a DICOM series, as `read_series` gives them, without reading pixels.

    `shape` is columns, rows, slices; `slices` takes the UID of an image to its slice; `heights_mm` has the z of each slice.
    """

    affine: Affine
    shape: tuple[int, int, int]
    slices: dict[str, int]
    heights_mm: np.ndarray
    patient: str


def read_grid(files: Sequence[Path]) -> Grid:
    """The grid of a series' files, one slice each; raises ScanError when they are no volume."""
    headers = [read_header(path) for path in files]
    planes = [plane for header in headers for plane in header.planes]
    if len(planes) != len(headers):
        raise ScanError("is not stored as one slice per file", do="Give the series as distributed by TCIA")
    order, affine = order_planes(planes)
    return Grid(
        affine=affine,
        shape=(planes[0].columns, planes[0].rows, len(planes)),
        slices={headers[index].instance_uid: place for place, index in enumerate(order)},
        heights_mm=np.array([planes[index].position[2] for index in order]),
        patient=headers[0].patient_id,
    )


def draw_annotation(annotation: Annotation, grid: Grid) -> np.ndarray:
    """Flat indices (sorted, C order of `grid.shape`) of the voxels inside a reader's outlines, less those in its holes.

    An outline runs through the first pixels outside of the nodule (Armato et al. 2011), so it is not part of it; where
    nothing remains within, the line itself is taken. Raises TableError for an outline on no slice, or beyond its slice.
    """
    filled: set[tuple[int, int, int]] = set()
    holes: set[tuple[int, int, int]] = set()
    lines: set[tuple[int, int, int]] = set()
    for outline in annotation.outlines:
        place = _find_slice(outline, grid)
        if (outline.points < 0).any() or (outline.points >= grid.shape[:2]).any():
            raise TableError(f"{annotation.name}: an outline extends beyond its slice", do="Download the series and its XML again")
        target = filled if outline.included else holes
        target.update((int(x), int(y), place) for x, y in fill_outline(outline.points))
        if outline.included:
            lines.update((int(x), int(y), place) for x, y in outline.points)
    voxels = sorted((filled - holes) or lines)
    return np.ravel_multi_index(tuple(np.array(voxels).T), grid.shape)


def fill_outline(points: np.ndarray) -> np.ndarray:
    """Pixels (M 2) strictly inside a closed line through pixel centres (`points`, N 2, whole numbers); those on it are not."""
    low, high = points.min(0), points.max(0)
    x, y = (axis.ravel()[:, None] for axis in np.mgrid[low[0] : high[0] + 1, low[1] : high[1] + 1])
    (ax, ay), (bx, by) = points.T, np.roll(points, -1, axis=0).T
    turn = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
    within = (np.minimum(ax, bx) <= x) & (x <= np.maximum(ax, bx)) & (np.minimum(ay, by) <= y) & (y <= np.maximum(ay, by))
    on_line = ((turn == 0) & within).any(axis=1)
    # A ray to the right crosses an inner pixel's border an odd number of times.
    crossed = ((ay > y) != (by > y)) & ((turn > 0) == (by > ay)) & (turn != 0)
    inside = (crossed.sum(axis=1) % 2 == 1) & ~on_line
    return np.column_stack([x[inside, 0], y[inside, 0]])


def _find_slice(outline: Outline, grid: Grid) -> int:
    if outline.instance_uid in grid.slices:
        return grid.slices[outline.instance_uid]
    # Some copies of the collection have new UIDs; the height stays.
    nearest = int(np.argmin(np.abs(grid.heights_mm - outline.height_mm)))
    if abs(grid.heights_mm[nearest] - outline.height_mm) > 0.5 * grid.affine.spacing[2]:
        raise TableError(
            f"an outline lies at z = {outline.height_mm:g} mm, where the series has no slice", do="Download the series again"
        )
    return nearest
