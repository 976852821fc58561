"""Cuts crops of a scan around structures and points, at a side and spacing that suit their size.

In the probes of METHOD, nodules were read at 0.7 mm in 64^3 voxels; at the encoder's own 2 mm, a nodule is only a few voxels wide.
All structures of a table have the same spacing, so that their features are comparable; each structure has its own side, a multiple
of 32, which includes its surroundings.

Crops are cut along the scan's axes closest to R, A, S, like the scans of a store, so that crops of a scan and of its mask coincide.
Only the required voxels are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagman.errors import ScanError, SettingsError
from dagman.scans.scan import Modality, Scan, reorient_scan
from dagman.store.preparation import SCALED_RANGE, find_scale
from dagman.store.resampling import apply_weights, axis_weights, to_labels

FINEST_MM = 0.7
"""Smallest spacing chosen automatically: few scans have a finer in-plane resolution. METHOD, Probes."""
POINT_MM = 1.0
"""Spacing around points of unknown size."""
SMALLEST_SIDE, LARGEST_SIDE, LARGEST_REQUESTED = 64, 128, 256
"""Sides in voxels: the limits of those chosen automatically, and the largest that a user may request."""
SIDES_PER_STRUCTURE = 2.0
"""Side of the smallest crop, as a multiple of the median extent of the structures."""
SURROUNDINGS, LEAST_SURROUNDINGS = 1.5, 1.25
"""Side of a crop as a multiple of the extent of its structure: the target, and the minimum if the side has reached its limit."""
BALL = 0.5
"""Diameter of the ball that is pooled around a point, as a share of the side of its crop."""


class CropShape(NamedTuple):
    """A cubic crop: `side` in voxels, a multiple of 32, and `spacing` in mm."""

    side: int
    spacing: float


@dataclass(frozen=True)
class CropSpec:
    """The requested size of crops around structures and points; None leaves the choice to the size of the structure.

    Raises:
        SettingsError: if a value is not positive.
    """

    mm: float | None = None
    "Side in mm."
    spacing: float | None = None
    "Voxel size in mm."

    def __post_init__(self) -> None:
        for name, value in (("crop-mm", self.mm), ("crop-spacing", self.spacing)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{name} is {value:g} mm", do="Give more than 0")


Reach = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""Start and stop along X, Y, Z in voxels of a crop, 0 at its edge."""
FROM_SIZE = CropSpec()
"""Side and voxel size follow from the size of the structure."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """The encoder's input for a structure or point."""

    voxels: NDArray[np.float32]
    "X Y Z, in HU, or for MR in stored values."
    inside: NDArray[np.bool_]
    "X Y Z, True where features are pooled."
    modality: Modality
    within: Reach | None = None
    "The part of the crop that lies inside the scan; the rest is mirrored. None if unknown."


def choose_crop(extent_mm: float | Sequence[float] | None, asked: CropSpec = FROM_SIZE, *, coarsest: float = 2.0) -> CropShape:
    """Choose a crop that suits one structure, or several: its spacing follows from their median extent, its side from the largest.

    Args:
        extent_mm: longest edge of the box around each structure, or None if the size is unknown (a point).
        asked: requested side and spacing.
        coarsest: the encoder's spacing; a coarser one is chosen only for structures that are too large for 128 voxels.

    Raises:
        SettingsError: if the requested crop has more than 256 voxels per side.
    """
    extents = np.atleast_1d(np.asarray([] if extent_mm is None else extent_mm, dtype=np.float64))
    median, largest = (float(np.median(extents)), float(extents.max())) if extents.size else (0.0, 0.0)
    if asked.spacing is not None:
        spacing = asked.spacing
    elif extents.size:
        spacing = min(max(SIDES_PER_STRUCTURE * median / SMALLEST_SIDE, FINEST_MM), max(coarsest, FINEST_MM))
    else:
        spacing = POINT_MM
    if asked.mm is not None:
        return _fit_request(asked.mm, spacing, fixed=asked.spacing is not None)
    side = min(max(_round_up(SURROUNDINGS * largest / spacing), SMALLEST_SIDE), LARGEST_SIDE)
    return CropShape(side, max(spacing, LEAST_SURROUNDINGS * largest / side))


def measure_extent(inside: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Return the longest edge in mm of the box around a structure (True inside); `spacing` is in mm along X, Y, Z."""
    return max((part.stop - part.start) * mm for part, mm in zip(_find_box(inside), spacing, strict=True))


def cut_structure(scan: Scan, inside: NDArray[np.bool_], shape: CropShape) -> Crop:
    """Cut the crop around the middle of a structure (True inside, on the scan's grid); it is mirrored beyond the scan."""
    box = _find_box(inside)
    start = [part.start for part in box]
    part = replace(scan, voxels=inside[box].astype(np.int16), affine=scan.affine.crop(start), modality="other")
    center = part.affine.to_world([(np.array(part.shape) - 1) / 2])[0]
    structure = cut_mask_crop(part, center, *shape) != 0
    if not structure.any():
        # The structure is thinner than the spacing and lies between the samples, so its centre is pooled.
        structure[(slice(shape.side // 2 - 1, shape.side // 2 + 1),) * 3] = True
    within = measure_reach(scan, center, shape)
    return Crop(voxels=_cut_voxels(scan, center, shape), inside=structure, modality=scan.modality, within=within)


def cut_surroundings(scan: Scan, point_mm: ArrayLike, shape: CropShape) -> Crop:
    """Cut the crop around a RAS point (mm), to be pooled in a ball of half its side.

    Raises:
        ScanError: if the point lies outside the scan.
    """
    voxels = _cut_voxels(scan, point_mm, shape)
    squares = ((np.arange(shape.side) + 0.5) / shape.side - 0.5) ** 2
    ball = squares[:, None, None] + squares[None, :, None] + squares[None, None, :] <= (BALL / 2) ** 2
    return Crop(voxels=voxels, inside=ball, modality=scan.modality, within=measure_reach(scan, point_mm, shape))


def cut_crop(scan: Scan, center_mm: ArrayLike, side: int, spacing: float) -> NDArray[np.float32]:
    """Cut a cube of voxels around a point, anti-aliased, and mirrored beyond the scan as often as needed.

    Args:
        scan: the scan.
        center_mm: centre in RAS mm.
        side: number of voxels along each axis.
        spacing: voxel size in mm.

    Returns:
        X Y Z, RAS+, in the scan's own values (HU for CT).

    Raises:
        ScanError: if the point lies outside the scan.
    """
    upright = reorient_scan(scan)
    positions = _place_samples(upright, center_mm, side, spacing)
    weights, region = [], []
    for size, place, step in zip(upright.shape, positions, np.divide(spacing, upright.spacing), strict=True):
        matrix = axis_weights(size, place, float(step))
        first, last = int(matrix.indices.min()), int(matrix.indices.max()) + 1
        weights.append(matrix[:, first:last])
        region.append(slice(first, last))
    return np.ascontiguousarray(apply_weights(upright.voxels[tuple(region)], weights))


def measure_reach(scan: Scan, center_mm: ArrayLike, shape: CropShape) -> Reach:
    """Return the part of `cut_crop`'s crop that lies inside the scan; the rest is mirrored."""
    upright = reorient_scan(scan)
    positions = _place_samples(upright, center_mm, *shape)
    reach = []
    for size, place, mm in zip(upright.shape, positions, upright.spacing, strict=True):
        step = shape.spacing / mm
        # Outer edges of the scan's first and last voxel, relative to the outer edge of the crop's first voxel.
        edges = (np.array([-0.5, size - 0.5]) - place[0]) / step + 0.5
        start, stop = np.clip(edges, 0, shape.side)
        reach.append((float(start), float(stop)))
    return reach[0], reach[1], reach[2]


def cut_mask_crop(mask: Scan, center_mm: ArrayLike, side: int, spacing: float) -> NDArray[np.int32]:
    """Cut labels of a map like `cut_crop` cuts the scan: by nearest voxel, and 0 (not mirrored) beyond the map."""
    upright = reorient_scan(mask)
    positions = _place_samples(upright, center_mm, side, spacing)
    # Halfway between two voxels, rounding errors would decide; the offset always selects the upper one.
    nearest = [np.floor(place + 0.5 + 1e-6).astype(int) for place in positions]
    inside = [(index >= 0) & (index < size) for index, size in zip(nearest, upright.shape, strict=True)]
    labels = np.zeros((side, side, side), dtype=np.int32)
    labels[np.ix_(*inside)] = to_labels(
        upright.voxels[np.ix_(*(index[within] for index, within in zip(nearest, inside, strict=True)))]
    )
    return labels


def _place_samples(upright: Scan, center_mm: ArrayLike, side: int, spacing: float) -> Sequence[NDArray[np.float64]]:
    """Return the fractional voxel indices of the crop's samples along each axis."""
    point = np.asarray(center_mm, dtype=np.float64).reshape(1, 3)
    center = upright.affine.to_voxel(point)[0]
    if not (np.isfinite(center).all() and (center >= -0.5).all() and (center <= np.array(upright.shape) - 0.5).all()):
        shown = ", ".join(f"{value:.1f}" for value in point[0])
        do = "Points are RAS; for LPS give --coordinates lps"
        raise ScanError(f"the point ({shown}) mm lies outside the scan", where=upright.source, do=do)
    offsets = (np.arange(side) - (side - 1) / 2) * spacing
    return [middle + offsets / step for middle, step in zip(center, upright.spacing, strict=True)]


def _cut_voxels(scan: Scan, center_mm: ArrayLike, shape: CropShape) -> NDArray[np.float32]:
    voxels = cut_crop(scan, center_mm, *shape)
    scale = find_scale(scan)
    if scale is None:
        return voxels
    low, high = scale
    return (voxels - low) * np.float32((SCALED_RANGE[1] - SCALED_RANGE[0]) / (high - low))


def _fit_request(crop_mm: float, spacing: float, *, fixed: bool) -> CropShape:
    side = max(_round_up(crop_mm / spacing), 32)
    if not fixed:
        # The spacing was not requested, so adapt it: a limited number of voxels, and exactly the requested side in mm.
        side = min(side, LARGEST_SIDE)
        return CropShape(side, crop_mm / side)
    if side > LARGEST_REQUESTED:
        what = f"a crop of {crop_mm:g} mm at {spacing:g} mm has {side} voxels per side; the maximum is {LARGEST_REQUESTED}"
        raise SettingsError(what, do="Give a smaller --crop-mm or a coarser --crop-spacing")
    return CropShape(side, spacing)


def _round_up(voxels: float) -> int:
    # The tolerance keeps 44.8 mm at 0.7 mm at 64 voxels, since floating point gives 64.00000000000001.
    return math.ceil(voxels / 32 - 1e-6) * 32


def _find_box(inside: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Return the smallest box around all True voxels, of which there must be at least one."""
    edges = []
    for axis in range(3):
        along = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        edges.append(slice(int(along[0]), int(along[-1]) + 1))
    x, y, z = edges
    return x, y, z
