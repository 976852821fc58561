"""Crops of a scan at its own resolution around a point, at any spacing, for the items of a table.

Both functions cut along the scan's axes nearest to R, A, S, as the store does, so that crops of a scan and of its mask lie on
each other; only the voxels that are needed are resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagman.errors import ScanError
from dagman.scans.scan import Scan, reorient_scan
from dagman.store.resampling import apply_weights, axis_weights, to_labels


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
