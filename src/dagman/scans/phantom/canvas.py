"""A voxel grid on which shapes are painted by their signed distance, with soft edges that imitate the partial volume effect."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Slices = tuple[slice, slice, slice]
Point = Sequence[float] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The voxels to paint, and their coordinates in the reference body.

    A patient's size and shape are expressed in these coordinates, so that the same anatomy is used for all patients.
    """

    hu: np.ndarray
    "X Y Z float32, RAS+."
    organs: np.ndarray
    "X Y Z uint8: labels of `ORGANS`."
    x: np.ndarray
    "X Y Z float32: each voxel's x in the reference body, mm; `y` and `z` likewise."
    y: np.ndarray
    z: np.ndarray
    spacing: float
    "mm."

    def paint(
        self,
        distance: np.ndarray,
        hu: float | np.ndarray,
        label: int = 0,
        box: Slices = (slice(None), slice(None), slice(None)),
        cover: float | np.ndarray = 1.0,
    ) -> None:
        """Paint a shape.

        Args:
            distance: signed distance to the shape in mm, negative inside.
            hu: value of the shape.
            label: value to write into `organs` inside the shape; 0 leaves it unchanged.
            box: block of voxels that the arrays cover.
            cover: opacity of the shape, 0 to 1.
        """
        share = np.clip(0.5 - distance / self.spacing, 0, 1) * cover
        region = self.hu[box]
        region += share * (hu - region)
        if label:
            self.organs[box][distance < 0] = label

    def box_around(self, *points: Point, reach: float) -> Slices:
        """Return the block of voxels that contains everything within `reach` mm of the points (reference mm)."""
        ends = np.asarray(points, dtype=float)
        low, high = ends.min(0) - reach, ends.max(0) + reach
        # A margin of 12 mm, since the reference coordinates are deformed by a few mm.
        slices = []
        for axis, grid in enumerate((self.x, self.y, self.z)):
            line = grid[tuple(slice(None) if i == axis else n // 2 for i, n in enumerate(grid.shape))]
            inside = np.flatnonzero((line > low[axis] - 12) & (line < high[axis] + 12))
            slices.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0))
        return (slices[0], slices[1], slices[2])

    def ellipsoid(self, center: Point, radii: Point, *, turn: float = 0.0, tilt: float = 0.0) -> tuple[np.ndarray, Slices]:
        """Return the distance to an ellipsoid, rotated about z (`turn`) and y (`tilt`) in degrees, and the block around it."""
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
        """Return the distance to a round tube between two points, tapering to `end_radius`, and the block around it."""
        end_radius = radius if end_radius is None else end_radius
        box = self.box_around(start, end, reach=max(radius, end_radius) + self.spacing)
        points = (self.x[box], self.y[box], self.z[box])
        return segment_distance(points, start, end, radius, end_radius), box

    def paint_path(self, path: Sequence[Point], radii: Sequence[float], hu: float, label: int = 0) -> None:
        """Paint tubes along a path, with a radius at each of its points."""
        for (start, radius), (end, end_radius) in itertools.pairwise(zip(path, radii, strict=True)):
            distance, box = self.tube(start, end, radius, end_radius)
            self.paint(distance, hu, label, box)


def ellipsoid_distance(points: Sequence[np.ndarray], radii: Point) -> np.ndarray:
    """Return the distance (mm, first order) to an ellipsoid or, with two axes, an elliptic cylinder.

    Args:
        points: coordinates relative to its centre, one array per axis.
        radii: half-axes in mm.
    """
    ratio = sum((p / r) ** 2 for p, r in zip(points, radii, strict=True))
    steepness = sum((p / (r * r)) ** 2 for p, r in zip(points, radii, strict=True))
    root = np.sqrt(ratio)
    return root * (root - 1) / np.sqrt(np.maximum(steepness, 1e-8))


def segment_distance(points: Sequence[np.ndarray], start: Point, end: Point, radius: float, end_radius: float) -> np.ndarray:
    """Return the distance (mm) of points (one array per axis) to a tapering tube from `start` to `end`."""
    along = [e - s for s, e in zip(start, end, strict=True)]
    length2 = max(sum(a * a for a in along), 1e-6)
    share = np.clip(sum((p - s) * a for p, s, a in zip(points, start, along, strict=True)) / length2, 0, 1)
    off = sum((p - s - share * a) ** 2 for p, s, a in zip(points, start, along, strict=True))
    return np.sqrt(off) - (radius + share * (end_radius - radius))
