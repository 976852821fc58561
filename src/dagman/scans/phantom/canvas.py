"""A grid on which shapes are painted by their signed distance, with soft edges as the partial volume of a voxel gives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Slices = tuple[slice, slice, slice]
Point = Sequence[float] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Voxels being painted.

    `hu` float32 and `organs` uint8 are X Y Z, RAS+; `x`, `y`, `z` (X Y Z, float32) are each voxel's place in the reference body,
    in mm: the patient's own size and shape are in these coordinates, so that one anatomy serves all patients.
    """

    hu: np.ndarray
    organs: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    spacing: float

    def paint(
        self,
        distance: np.ndarray,
        hu: float | np.ndarray,
        label: int = 0,
        box: Slices = (slice(None), slice(None), slice(None)),
        cover: float | np.ndarray = 1.0,
    ) -> None:
        """Blend `hu` in where `distance` (mm, negative inside) says so, and write `label` where it is not 0.

        `box` is the block of voxels that the arrays describe; `cover` is how much of the old value goes inside (0 to 1).
        """
        share = np.clip(0.5 - distance / self.spacing, 0, 1) * cover
        region = self.hu[box]
        region += share * (hu - region)
        if label:
            self.organs[box][distance < 0] = label

    def box_around(self, *points: Point, reach: float) -> Slices:
        """The block of voxels that holds everything within `reach` mm of the points (reference mm)."""
        ends = np.asarray(points, dtype=float)
        low, high = ends.min(0) - reach, ends.max(0) + reach
        # The reference coordinates bend by a few mm over the body; 12 mm more cover that.
        slices = []
        for axis, grid in enumerate((self.x, self.y, self.z)):
            line = grid[tuple(slice(None) if i == axis else n // 2 for i, n in enumerate(grid.shape))]
            inside = np.flatnonzero((line > low[axis] - 12) & (line < high[axis] + 12))
            slices.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0))
        return (slices[0], slices[1], slices[2])

    def ellipsoid(self, center: Point, radii: Point, *, turn: float = 0.0, tilt: float = 0.0) -> tuple[np.ndarray, Slices]:
        """Distance to an ellipsoid in the block around it; `turn` is about the long (z) axis, `tilt` about y, in degrees."""
        box = self.box_around(center, reach=max(radii))
        x, y, z = self.x[box] - center[0], self.y[box] - center[1], self.z[box] - center[2]
        if turn:
            c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
            x, y = c * x + s * y, c * y - s * x
        if tilt:
            c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
            x, z = c * x + s * z, c * z - s * x
        return ellipsoid_distance((x, y, z), radii), box

    def tube(self, start: Point, end: Point, radius: float, end_radius: float | None = None) -> tuple[np.ndarray, Slices]:
        """Distance to a round tube between two points, tapering to `end_radius`, in the block around it."""
        end_radius = radius if end_radius is None else end_radius
        box = self.box_around(start, end, reach=max(radius, end_radius) + self.spacing)
        place = (self.x[box], self.y[box], self.z[box])
        return segment_distance(place, start, end, radius, end_radius), box

    def paint_path(self, path: Sequence[Point], radii: Sequence[float], hu: float, label: int = 0) -> None:
        """Paint tubes along a path with a radius at each of its points."""
        for (start, radius), (end, end_radius) in itertools.pairwise(zip(path, radii, strict=True)):
            distance, box = self.tube(start, end, radius, end_radius)
            self.paint(distance, hu, label, box)


def ellipsoid_distance(place: Sequence[np.ndarray], radii: Point) -> np.ndarray:
    """Distance (mm, first order) of places relative to the centre of an ellipsoid or, with two axes, an elliptic cylinder."""
    ratio = sum((p / r) ** 2 for p, r in zip(place, radii, strict=True))
    steepness = sum((p / (r * r)) ** 2 for p, r in zip(place, radii, strict=True))
    root = np.sqrt(ratio)
    return root * (root - 1) / np.sqrt(np.maximum(steepness, 1e-8))


def segment_distance(place: Sequence[np.ndarray], start: Point, end: Point, radius: float, end_radius: float) -> np.ndarray:
    """Distance (mm) to a tapering tube from `start` to `end`."""
    along = [e - s for s, e in zip(start, end, strict=True)]
    length2 = max(sum(a * a for a in along), 1e-6)
    share = np.clip(sum((p - s) * a for p, s, a in zip(place, start, along, strict=True)) / length2, 0, 1)
    off = sum((p - s - share * a) ** 2 for p, s, a in zip(place, start, along, strict=True))
    return np.sqrt(off) - (radius + share * (end_radius - radius))
