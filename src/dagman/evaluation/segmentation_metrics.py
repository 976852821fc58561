"""How well a predicted structure covers the true one: boolean X Y Z arrays on one grid, spacing in mm.

Conventions: both empty is NaN (there was nothing to find); one empty is Dice 0, surface Dice 0 and distance infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


def measure_dice(predicted: Mask, truth: Mask) -> float:
    """Twice the overlap over the sum of both volumes."""
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(predicted & truth)) / total if total else float("nan")


def measure_hausdorff(predicted: Mask, truth: Mask, spacing: Sequence[float], percentile: float = 95.0) -> float:
    """The larger of the two directed distances between surfaces in mm, each at a percentile of its voxels."""
    distances = measure_surface_distances(predicted, truth, spacing)
    if distances is None:
        return float("nan")
    # One structure is empty; a percentile of infinities would be NaN.
    if not all(len(side) for side in distances):
        return float("inf")
    return max(float(np.percentile(side, percentile)) for side in distances)


def measure_surface_dice(predicted: Mask, truth: Mask, spacing: Sequence[float], tolerance: float = 2.0) -> float:
    """Share of both surfaces' voxels within `tolerance` mm of the other surface (Nikolov et al., JMIR 2021; by voxels)."""
    distances = measure_surface_distances(predicted, truth, spacing)
    if distances is None:
        return float("nan")
    near = sum(int(np.count_nonzero(side <= tolerance)) for side in distances)
    return near / sum(len(side) for side in distances)


def measure_surface_distances(predicted: Mask, truth: Mask, spacing: Sequence[float]) -> tuple[Floats, Floats] | None:
    """Distances in mm of the predicted surface's voxels to the true surface, and the other way; None if both are empty.

    A surface is the voxels of a structure with a face on something else, or on the array's edge.
    """
    either = predicted | truth
    if not either.any():
        return None
    # Only the box around both matters, and distance transforms cost by the voxel.
    (box,) = ndimage.find_objects(either.astype(np.uint8))
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (np.pad(predicted[box], 1), np.pad(truth[box], 1))]
    sides = []
    for edge, other in (edges, edges[::-1]):
        if other.any():
            sides.append(ndimage.distance_transform_edt(~other, sampling=spacing)[edge])
        else:
            sides.append(np.full(int(np.count_nonzero(edge)), np.inf))
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
    neighbours = np.ones((3, 3, 3), dtype=bool)
    true_parts, lesions = ndimage.label(truth, structure=neighbours)
    predicted_parts, guesses = ndimage.label(predicted, structure=neighbours)
    sizes = np.bincount(true_parts.ravel(), minlength=lesions + 1)[1:]
    covered = np.bincount(true_parts[predicted], minlength=lesions + 1)[1:]
    matched = np.unique(predicted_parts[truth & predicted])
    return Detection(lesions=lesions, found=int(np.sum(covered > overlap * sizes)), false_positives=guesses - len(matched))


def measure_volume(mask: Mask, spacing: Sequence[float]) -> float:
    """Volume in ml."""
    return int(np.count_nonzero(mask)) * float(np.prod(spacing)) / 1000.0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Bland and Altman (Lancet 1986): mean difference and the limits that hold 95 % of differences, if normal."""

    bias: float
    low: float
    high: float


def measure_agreement(predicted: ArrayLike, truth: ArrayLike) -> Agreement:
    """Agreement of two measurements of n items, predicted minus true; limits are NaN for fewer than two."""
    differences = np.asarray(predicted, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    bias = float(differences.mean()) if len(differences) else float("nan")
    reach = 1.96 * float(differences.std(ddof=1)) if len(differences) > 1 else float("nan")
    return Agreement(bias=bias, low=bias - reach, high=bias + reach)
