"""Segmentation metrics of one structure: predicted and true masks as boolean X Y Z arrays on the same grid, spacing in mm.

Conventions: if both masks are empty, every metric is NaN (there was nothing to find); if only one is, Dice and surface Dice are 0
and distances are infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
_TRANSFORM, _SEARCH = 150.0, 90.0
"""Measured costs in ns: of a distance transform in both directions, per voxel; of a tree search, per point and level."""


def measure_dice(predicted: Mask, truth: Mask) -> float:
    """Compute Dice: twice the overlap over the sum of the volumes."""
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(predicted & truth)) / total if total else float("nan")


def measure_hausdorff(predicted: Mask, truth: Mask, spacing: Sequence[float], percentile: float = 95.0) -> float:
    """Compute the Hausdorff distance in mm: the larger of the two directed surface distances, each at `percentile`."""
    return find_hausdorff(measure_surface_distances(predicted, truth, spacing), percentile)


def measure_surface_dice(predicted: Mask, truth: Mask, spacing: Sequence[float], tolerance: float = 2.0) -> float:
    """Compute the share of surface voxels within `tolerance` mm of the other surface (Nikolov et al., JMIR 2021; in voxels)."""
    return find_surface_dice(measure_surface_distances(predicted, truth, spacing), tolerance)


def find_hausdorff(distances: tuple[Floats, Floats] | None, percentile: float = 95.0) -> float:
    """Like `measure_hausdorff`, from the distances that `measure_surface_distances` returns."""
    if distances is None:
        return float("nan")
    # Only one structure is empty, and np.percentile of infinities would be NaN.
    if not all(len(side) for side in distances):
        return float("inf")
    return max(float(np.percentile(side, percentile)) for side in distances)


def find_surface_dice(distances: tuple[Floats, Floats] | None, tolerance: float = 2.0) -> float:
    """Like `measure_surface_dice`, from the distances that `measure_surface_distances` returns."""
    if distances is None:
        return float("nan")
    near = sum(int(np.count_nonzero(side <= tolerance)) for side in distances)
    return near / sum(len(side) for side in distances)


def measure_surface_distances(predicted: Mask, truth: Mask, spacing: Sequence[float]) -> tuple[Floats, Floats] | None:
    """Measure distances in mm from each predicted surface voxel to the true surface, and vice versa; None if both are empty.

    The surface consists of the voxels that `find_surface` returns. The faster of two exact methods is chosen by estimated cost.
    """
    surfaces = [find_surface(mask) for mask in (predicted, truth)]
    if not any(map(len, surfaces)):
        return None
    if not all(map(len, surfaces)):
        first, second = (np.full(len(surface), np.inf) for surface in surfaces)
        return first, second
    first, second = surfaces
    low, high = (choose(np.concatenate([choose(side, axis=0)[None] for side in surfaces]), axis=0) for choose in (np.min, np.max))
    voxels, points = float(np.prod(high - low + 3)), len(first) + len(second)
    if voxels * _TRANSFORM < points * np.log2(points) * _SEARCH:
        return _transform_distances(first - low, second - low, high - low + 1, spacing)
    return _search_distances(first, second, spacing), _search_distances(second, first, spacing)


def find_surface(mask: Mask) -> NDArray[np.int64]:
    """Find the surface of a mask: indices (n 3) of voxels with a face on the background or on the edge of the array."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return np.zeros((0, 3), dtype=np.int64)
    # Shifted copies for the six neighbours: general morphological erosion takes thirty times as long.
    padded = np.pad(mask[boxes[0]], 1)
    edge, middle = padded[1:-1, 1:-1, 1:-1].copy(), slice(1, -1)
    inside = np.ones_like(edge)
    for axis in range(3):
        for moved in (slice(None, -2), slice(2, None)):
            inside &= padded[tuple(moved if other == axis else middle for other in range(3))]
    edge &= ~inside
    return np.argwhere(edge) + [part.start for part in boxes[0]]


def _search_distances(points: NDArray[np.int64], others: NDArray[np.int64], spacing: Sequence[float]) -> Floats:
    """Measure the distance in mm from each point (n 3, voxels) to the nearest of the others, with a k-d tree."""
    steps = np.asarray(spacing, dtype=np.float64)
    # Splitting at midpoints builds the tree in a fraction of the time, and points on a grid are evenly spread anyway.
    _, nearest = cKDTree(others * steps, balanced_tree=False, compact_nodes=False).query(points * steps)
    # Computed from integer offsets, as in a distance transform, so that distances equal to the tolerance stay exactly equal.
    distances: Floats = np.sqrt(np.sum(((points - others[nearest]) * steps) ** 2, axis=1))
    return distances


def _transform_distances(
    first: NDArray[np.int64], second: NDArray[np.int64], shape: NDArray[np.int64], spacing: Sequence[float]
) -> tuple[Floats, Floats]:
    """Measure distances in mm in both directions, with a distance transform of the box around all points."""
    sides = []
    for points, others in ((first, second), (second, first)):
        away = np.ones(tuple(shape), dtype=bool)
        away[tuple(others.T)] = False
        sides.append(ndimage.distance_transform_edt(away, sampling=spacing)[tuple(points.T)])
    return sides[0], sides[1]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Lesions of one scan, as connected components (26 neighbours)."""

    lesions: int
    "Components of the true mask."
    found: int
    "True components that the prediction covers sufficiently."
    false_positives: int
    "Predicted components that do not touch any true component."


def detect_lesions(predicted: Mask, truth: Mask, overlap: float = 0.0) -> Detection:
    """Match components: a lesion is found if more than `overlap` of its voxels are predicted (0: one voxel is enough)."""
    true_parts, lesions, true_box = _label_parts(truth)
    predicted_parts, guesses, predicted_box = _label_parts(predicted)
    sizes = np.bincount(true_parts.ravel(), minlength=lesions + 1)[1:]
    covered = np.bincount(true_parts[predicted[true_box]], minlength=lesions + 1)[1:]
    matched = np.unique(predicted_parts[(truth & predicted)[predicted_box]])
    return Detection(lesions=lesions, found=int(np.sum(covered > overlap * sizes)), false_positives=guesses - len(matched))


def _label_parts(mask: Mask) -> tuple[NDArray[np.int32], int, tuple[slice, ...]]:
    """Label connected components in the bounding box of a mask; returns the labels, their number, and the box."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    box = boxes[0] if boxes else (slice(0, 1),) * 3
    parts, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3), dtype=bool))
    return parts, count, box


def measure_volume(mask: Mask, spacing: Sequence[float]) -> float:
    """Return the volume of a mask in ml."""
    return to_ml(int(np.count_nonzero(mask)), spacing)


def to_ml(voxels: int, spacing: Sequence[float]) -> float:
    """Convert a number of voxels to ml."""
    return int(voxels) * float(np.prod(spacing)) / 1000.0


@dataclass(frozen=True, kw_only=True)
class LimitsOfAgreement:
    """Bland and Altman (Lancet 1986): mean difference and the limits that contain 95 % of differences, assuming normality."""

    bias: float
    low: float
    high: float


def bland_altman(predicted: ArrayLike, truth: ArrayLike) -> LimitsOfAgreement:
    """Compute Bland and Altman's limits of agreement over n items, predicted minus true; limits are NaN for fewer than two."""
    differences = np.asarray(predicted, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    bias = float(differences.mean()) if len(differences) else float("nan")
    reach = 1.96 * float(differences.std(ddof=1)) if len(differences) > 1 else float("nan")
    return LimitsOfAgreement(bias=bias, low=bias - reach, high=bias + reach)
