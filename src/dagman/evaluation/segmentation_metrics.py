"""How well a predicted structure covers the true one: boolean X Y Z arrays on one grid, spacing in mm.

Conventions: both empty is NaN (there was nothing to find); one empty is Dice 0, surface Dice 0 and distance infinity.
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
"""ns that a distance transform takes for a voxel, both ways, and a search for a point and each halving of the points."""


def measure_dice(predicted: Mask, truth: Mask) -> float:
    """Twice the overlap over the sum of both volumes."""
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(predicted & truth)) / total if total else float("nan")


def measure_hausdorff(predicted: Mask, truth: Mask, spacing: Sequence[float], percentile: float = 95.0) -> float:
    """The larger of the two directed distances between surfaces in mm, each at a percentile of its voxels."""
    return find_hausdorff(measure_surface_distances(predicted, truth, spacing), percentile)


def measure_surface_dice(predicted: Mask, truth: Mask, spacing: Sequence[float], tolerance: float = 2.0) -> float:
    """Share of both surfaces' voxels within `tolerance` mm of the other surface (Nikolov et al., JMIR 2021; by voxels)."""
    return find_surface_dice(measure_surface_distances(predicted, truth, spacing), tolerance)


def find_hausdorff(distances: tuple[Floats, Floats] | None, percentile: float = 95.0) -> float:
    """`measure_hausdorff` of distances from `measure_surface_distances`."""
    if distances is None:
        return float("nan")
    # One structure is empty; a percentile of infinities would be NaN.
    if not all(len(side) for side in distances):
        return float("inf")
    return max(float(np.percentile(side, percentile)) for side in distances)


def find_surface_dice(distances: tuple[Floats, Floats] | None, tolerance: float = 2.0) -> float:
    """`measure_surface_dice` of distances from `measure_surface_distances`."""
    if distances is None:
        return float("nan")
    near = sum(int(np.count_nonzero(side <= tolerance)) for side in distances)
    return near / sum(len(side) for side in distances)


def measure_surface_distances(predicted: Mask, truth: Mask, spacing: Sequence[float]) -> tuple[Floats, Floats] | None:
    """Distances in mm of the predicted surface's voxels to the true surface, and the other way; None if both are empty.

    A surface is the voxels of a structure with a face on something else, or on the array's edge.
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
    """Indices (n 3) of a mask's voxels that have a face on something else, or on the array's edge."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return np.zeros((0, 3), dtype=np.int64)
    # Six neighbours by shifted copies: morphology for any structuring element takes thirty times as long.
    padded = np.pad(mask[boxes[0]], 1)
    edge, middle = padded[1:-1, 1:-1, 1:-1].copy(), slice(1, -1)
    inside = np.ones_like(edge)
    for axis in range(3):
        for moved in (slice(None, -2), slice(2, None)):
            inside &= padded[tuple(moved if other == axis else middle for other in range(3))]
    edge &= ~inside
    return np.argwhere(edge) + [part.start for part in boxes[0]]


def _search_distances(points: NDArray[np.int64], others: NDArray[np.int64], spacing: Sequence[float]) -> Floats:
    """The distance in mm of each point (n 3, voxels) to the nearest of the others, by a tree of these."""
    steps = np.asarray(spacing, dtype=np.float64)
    # A tree cut at the middle of its box is made in a fraction of the time, and a grid is as even as points can be.
    _, nearest = cKDTree(others * steps, balanced_tree=False, compact_nodes=False).query(points * steps)
    # From whole voxels, as a distance transform does it: a distance of just the tolerance stays what it is.
    distances: Floats = np.sqrt(np.sum(((points - others[nearest]) * steps) ** 2, axis=1))
    return distances


def _transform_distances(
    first: NDArray[np.int64], second: NDArray[np.int64], shape: NDArray[np.int64], spacing: Sequence[float]
) -> tuple[Floats, Floats]:
    """Distances in mm both ways, by a distance transform of the box around all points."""
    sides = []
    for points, others in ((first, second), (second, first)):
        away = np.ones(tuple(shape), dtype=bool)
        away[tuple(others.T)] = False
        sides.append(ndimage.distance_transform_edt(away, sampling=spacing)[tuple(points.T)])
    return sides[0], sides[1]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Lesions of one scan: connected components (26 neighbours)."""

    lesions: int
    "Components of the truth."
    found: int
    "Of these, the ones that the prediction touches."
    false_positives: int
    "Components of the prediction that touch no true one."


def detect_lesions(predicted: Mask, truth: Mask, overlap: float = 0.0) -> Detection:
    """Match components: a lesion is found when more than `overlap` of its voxels is predicted (0: one voxel is enough)."""
    true_parts, lesions, true_box = _label_parts(truth)
    predicted_parts, guesses, predicted_box = _label_parts(predicted)
    sizes = np.bincount(true_parts.ravel(), minlength=lesions + 1)[1:]
    covered = np.bincount(true_parts[predicted[true_box]], minlength=lesions + 1)[1:]
    matched = np.unique(predicted_parts[(truth & predicted)[predicted_box]])
    return Detection(lesions=lesions, found=int(np.sum(covered > overlap * sizes)), false_positives=guesses - len(matched))


def _label_parts(mask: Mask) -> tuple[NDArray[np.int32], int, tuple[slice, ...]]:
    """Connected components in the box around a mask, their number, and the box."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    box = boxes[0] if boxes else (slice(0, 1),) * 3
    parts, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3), dtype=bool))
    return parts, count, box


def measure_volume(mask: Mask, spacing: Sequence[float]) -> float:
    """Volume in ml."""
    return to_ml(int(np.count_nonzero(mask)), spacing)


def to_ml(voxels: int, spacing: Sequence[float]) -> float:
    """Volume in ml of so many voxels."""
    return int(voxels) * float(np.prod(spacing)) / 1000.0


@dataclass(frozen=True, kw_only=True)
class LimitsOfAgreement:
    """Bland and Altman (Lancet 1986): mean difference and the limits that hold 95 % of differences, if normal."""

    bias: float
    low: float
    high: float


def bland_altman(predicted: ArrayLike, truth: ArrayLike) -> LimitsOfAgreement:
    """Bland and Altman's limits of two measurements of n items, predicted minus true; NaN for fewer than two."""
    differences = np.asarray(predicted, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    bias = float(differences.mean()) if len(differences) else float("nan")
    reach = 1.96 * float(differences.std(ddof=1)) if len(differences) > 1 else float("nan")
    return LimitsOfAgreement(bias=bias, low=bias - reach, high=bias + reach)
