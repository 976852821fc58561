"""Crops of a scan at its own resolution, around structures and points: which side and spacing suits them, and their voxels.

METHOD, Probes: nodules were read at 0.7 mm in 64^3 voxels; at the encoder's own 2 mm a nodule is a few voxels wide. A table has
one spacing, so that its features compare; each structure has a side, a multiple of 32, that shows what is around it too.

Crops are cut along the scan's axes nearest to R, A, S, as the store does, so that crops of a scan and of its mask lie on each
other; only the voxels that are needed are resampled.
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
"""Few scans show more in-plane. METHOD, Probes."""
POINT_MM = 1.0
"""Spacing around points of which no size is known."""
SMALLEST_SIDE, LARGEST_SIDE, LARGEST_ASKED = 64, 128, 256
"""Sides in voxels: chosen ones lie between the first two; what a user asks for may be larger."""
SIDES_A_STRUCTURE = 2.0
"""A crop of the smallest side shows a structure of middle size with half its width around it."""
SURROUNDINGS, LEAST_SURROUNDINGS = 1.5, 1.25
"""Side of a crop in extents of its structure: wanted, and kept even where the side has reached its limit."""
BALL = 0.5
"""Diameter of what is pooled around a point, in sides of its crop."""


class CropShape(NamedTuple):
    """A cubic crop: `side` in voxels, a multiple of 32, and `spacing` in mm."""

    side: int
    spacing: float


@dataclass(frozen=True)
class CropSpec:
    """What is asked of the crops around structures and points; raises SettingsError for what is not positive.

    mm: side in mm. spacing: voxel size in mm. None: from the structure's size.
    """

    mm: float | None = None
    spacing: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("crop-mm", self.mm), ("crop-spacing", self.spacing)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{name} is {value:g} mm", do="Give more than 0")


Reach = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""Start and stop along X, Y, Z in voxels of a crop, 0 at its edge."""
FROM_SIZE = CropSpec()
"""Nothing is asked: side and voxel size follow from the structure."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """What the encoder is given of a structure or point: `voxels` float32 X Y Z (HU, MR as stored), and where to pool (True)."""

    voxels: NDArray[np.float32]
    inside: NDArray[np.bool_]
    modality: Modality
    within: Reach | None = None
    "What of it is scan; the rest is mirrored. None: not known."


def choose_crop(extent_mm: float | Sequence[float] | None, asked: CropSpec = FROM_SIZE, *, coarsest: float = 2.0) -> CropShape:
    """The crop that suits one structure, or all of several.

    extent_mm: longest edge of the structure's box, of each of them, or None where no size is known (a point).
    coarsest: the encoder's spacing, beyond which only structures too large for 128 voxels go. The spacing follows the median
    extent, the side the largest.

    Raises SettingsError for a crop of more than 256 voxels a side.
    """
    extents = np.atleast_1d(np.asarray([] if extent_mm is None else extent_mm, dtype=np.float64))
    middle, largest = (float(np.median(extents)), float(extents.max())) if extents.size else (0.0, 0.0)
    if asked.spacing is not None:
        spacing = asked.spacing
    elif extents.size:
        spacing = min(max(SIDES_A_STRUCTURE * middle / SMALLEST_SIDE, FINEST_MM), max(coarsest, FINEST_MM))
    else:
        spacing = POINT_MM
    if asked.mm is not None:
        return _fit_asked(asked.mm, spacing, fixed=asked.spacing is not None)
    side = min(max(_round_up(SURROUNDINGS * largest / spacing), SMALLEST_SIDE), LARGEST_SIDE)
    return CropShape(side, max(spacing, LEAST_SURROUNDINGS * largest / side))


def measure_extent(inside: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Longest edge in mm of the box around what is True; `spacing` in mm along X, Y, Z."""
    return max((part.stop - part.start) * mm for part, mm in zip(_find_box(inside), spacing, strict=True))


def cut_structure(scan: Scan, inside: NDArray[np.bool_], shape: CropShape) -> Crop:
    """The crop around the middle of a structure (True inside, on the scan's grid); mirrored where the scan ends."""
    box = _find_box(inside)
    start = [part.start for part in box]
    part = replace(scan, voxels=inside[box].astype(np.int16), affine=scan.affine.crop(start), modality="other")
    center = part.affine.to_world([(np.array(part.shape) - 1) / 2])[0]
    structure = cut_mask_crop(part, center, *shape) != 0
    if not structure.any():
        # Thinner than the spacing: no sample met it, but its middle did.
        structure[(slice(shape.side // 2 - 1, shape.side // 2 + 1),) * 3] = True
    within = measure_reach(scan, center, shape)
    return Crop(voxels=_cut_voxels(scan, center, shape), inside=structure, modality=scan.modality, within=within)


def cut_surroundings(scan: Scan, point_mm: ArrayLike, shape: CropShape) -> Crop:
    """The crop around a RAS point (mm), to be pooled in a ball of half its side; raises ScanError when it lies outside the scan."""
    voxels = _cut_voxels(scan, point_mm, shape)
    places = (np.arange(shape.side) + 0.5) / shape.side - 0.5
    squares = places**2
    ball = squares[:, None, None] + squares[None, :, None] + squares[None, None, :] <= (BALL / 2) ** 2
    return Crop(voxels=voxels, inside=ball, modality=scan.modality, within=measure_reach(scan, point_mm, shape))


def cut_crop(scan: Scan, center_mm: ArrayLike, side: int, spacing: float) -> NDArray[np.float32]:
    """`side`^3 voxels `spacing` mm apart around a RAS point (mm): X Y Z, RAS+, in the scan's own values (HU for CT).

    Anti-aliased, and mirrored where the scan ends, as often as needed. Raises ScanError when the point lies outside the scan.
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
    """What of the crop that `cut_crop` cuts there is scan: beyond, it is mirrored."""
    upright = reorient_scan(scan)
    positions = _place_samples(upright, center_mm, *shape)
    reach = []
    for size, place, mm in zip(upright.shape, positions, upright.spacing, strict=True):
        step = shape.spacing / mm
        # From the edges of the scan's first and last voxel to the edge of the crop's first.
        edges = (np.array([-0.5, size - 0.5]) - place[0]) / step + 0.5
        start, stop = np.clip(edges, 0, shape.side)
        reach.append((float(start), float(stop)))
    return reach[0], reach[1], reach[2]


def cut_mask_crop(mask: Scan, center_mm: ArrayLike, side: int, spacing: float) -> NDArray[np.int32]:
    """Labels of a map as `cut_crop` cuts its scan: nearest voxel, 0 (not mirrored) where the map ends."""
    upright = reorient_scan(mask)
    positions = _place_samples(upright, center_mm, side, spacing)
    # Halfway between two voxels rounding noise would choose; the nudge always takes the upper one.
    nearest = [np.floor(place + 0.5 + 1e-6).astype(int) for place in positions]
    inside = [(index >= 0) & (index < size) for index, size in zip(nearest, upright.shape, strict=True)]
    labels = np.zeros((side, side, side), dtype=np.int32)
    labels[np.ix_(*inside)] = to_labels(
        upright.voxels[np.ix_(*(index[within] for index, within in zip(nearest, inside, strict=True)))]
    )
    return labels


def _place_samples(upright: Scan, center_mm: ArrayLike, side: int, spacing: float) -> Sequence[NDArray[np.float64]]:
    """Voxel indices, with fractions, of the crop's samples along each axis."""
    point = np.asarray(center_mm, dtype=np.float64).reshape(1, 3)
    center = upright.affine.to_voxel(point)[0]
    if not (np.isfinite(center).all() and (center >= -0.5).all() and (center <= np.array(upright.shape) - 0.5).all()):
        wanted = ", ".join(f"{value:.1f}" for value in point[0])
        raise ScanError(
            f"the point ({wanted}) mm lies outside the scan",
            where=upright.source,
            do="Points are RAS; for LPS give --coordinates lps",
        )
    offsets = (np.arange(side) - (side - 1) / 2) * spacing
    return [middle + offsets / step for middle, step in zip(center, upright.spacing, strict=True)]


def _cut_voxels(scan: Scan, center_mm: ArrayLike, shape: CropShape) -> NDArray[np.float32]:
    voxels = cut_crop(scan, center_mm, *shape)
    scale = find_scale(scan)
    if scale is None:
        return voxels
    low, high = scale
    return (voxels - low) * np.float32((SCALED_RANGE[1] - SCALED_RANGE[0]) / (high - low))


def _fit_asked(crop_mm: float, spacing: float, *, fixed: bool) -> CropShape:
    side = max(_round_up(crop_mm / spacing), 32)
    if not fixed:
        # Nobody asked for the spacing: few enough voxels, and exactly the millimetres asked for.
        side = min(side, LARGEST_SIDE)
        return CropShape(side, crop_mm / side)
    if side > LARGEST_ASKED:
        what = f"a crop of {crop_mm:g} mm at {spacing:g} mm has {side} voxels a side; the most is {LARGEST_ASKED}"
        raise SettingsError(what, do="Give a smaller --crop-mm or a coarser --crop-spacing")
    return CropShape(side, spacing)


def _round_up(voxels: float) -> int:
    # The tolerance keeps 44.8 mm at 0.7 mm at 64 voxels: floating point makes 64.00000000000001 of it.
    return math.ceil(voxels / 32 - 1e-6) * 32


def _find_box(inside: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The smallest box around what is True; there is at least one."""
    edges = []
    for axis in range(3):
        along = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        edges.append(slice(int(along[0]), int(along[-1]) + 1))
    x, y, z = edges
    return x, y, z
