"""Crops around structures and points: which side and spacing suits them, and the voxels with what lies inside.

METHOD, Probes: nodules were read at 0.7 mm in 64^3 voxels; at the encoder's own 2 mm a nodule is a few voxels wide. A table has
one spacing, so that its features compare; each structure has a side, a multiple of 32, that shows what is around it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagman.errors import SettingsError
from dagman.scans.scan import Modality, Scan
from dagman.store.crops import cut_crop, cut_mask_crop
from dagman.store.preparation import SCALED_RANGE, find_scale

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """What the encoder is given of a structure or point: `voxels` float32 X Y Z (HU, MR as stored), and where to pool (True)."""

    voxels: NDArray[np.float32]
    inside: NDArray[np.bool_]
    modality: Modality


def choose_crop(
    extent_mm: float | Sequence[float] | None,
    *,
    crop_mm: float | None = None,
    crop_spacing: float | None = None,
    coarsest: float = 2.0,
) -> CropShape:
    """The crop that suits one structure, or all of several.

    extent_mm: longest edge of the structure's box, of each of them, or None where no size is known (a point).
    crop_mm, crop_spacing: what a user asks for. coarsest: the encoder's spacing, beyond which only structures too large
    for 128 voxels go. The spacing follows the median extent, the side the largest.

    Raises SettingsError for a crop that is not positive, or of more than 256 voxels a side.
    """
    for name, value in (("crop-mm", crop_mm), ("crop-spacing", crop_spacing)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise SettingsError(f"{name} is {value:g} mm", do="Give more than 0")
    extents = np.atleast_1d(np.asarray([] if extent_mm is None else extent_mm, dtype=np.float64))
    middle, largest = (float(np.median(extents)), float(extents.max())) if extents.size else (0.0, 0.0)
    if crop_spacing is not None:
        spacing = crop_spacing
    elif extents.size:
        spacing = min(max(SIDES_A_STRUCTURE * middle / SMALLEST_SIDE, FINEST_MM), max(coarsest, FINEST_MM))
    else:
        spacing = POINT_MM
    if crop_mm is not None:
        return _fit_asked(crop_mm, spacing, fixed=crop_spacing is not None)
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
    return Crop(voxels=_cut_voxels(scan, center, shape), inside=structure, modality=scan.modality)


def cut_surroundings(scan: Scan, point_mm: ArrayLike, shape: CropShape) -> Crop:
    """The crop around a RAS point (mm), to be pooled in a ball of half its side; raises ScanError when it lies outside the scan."""
    voxels = _cut_voxels(scan, point_mm, shape)
    places = (np.arange(shape.side) + 0.5) / shape.side - 0.5
    squares = places**2
    ball = squares[:, None, None] + squares[None, :, None] + squares[None, None, :] <= (BALL / 2) ** 2
    return Crop(voxels=voxels, inside=ball, modality=scan.modality)


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
