"""Affines: 4 x 4 matrices from voxel indices to RAS millimetres.

Axis letters: R, A, S mean that the index grows towards the patient's right, front and head; L, P, I mean the opposite.
World coordinates are RAS everywhere in dagman; only the readers of DICOM and ITK formats use `LPS_TO_RAS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import nibabel.orientations
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagman.errors import ScanError

LPS_TO_RAS: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
"""In ITK and DICOM, x grows to the patient's left and y to the back: two signs change, for points as well as for matrices."""

_FARTHEST_MM = 1e9
"""Larger numbers come from a damaged header, and computing with them would overflow."""

_DEGENERATE = 1e-6
"""Smallest volume of a voxel relative to the product of its edges; below it, two axes are considered parallel."""


@dataclass(frozen=True)
class Lattice:
    """How one grid is placed on another: transpose it by `order`, then flip axes, then put its first voxel at `start`."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    "The axes to flip, after transposing."
    start: tuple[int, int, int]
    "Index on the other grid of the first voxel."

    def place(self, voxels: NDArray, shape: Sequence[int]) -> NDArray:
        """Return the voxels on the other grid, which has the given shape: 0 outside the voxels, which are cropped to the grid."""
        oriented = np.flip(voxels.transpose(self.order), tuple(axis for axis in range(3) if self.flips[axis]))
        if oriented.shape == tuple(shape) and not any(self.start):
            return oriented
        placed = np.zeros(tuple(shape), dtype=voxels.dtype)
        spans = list(zip(self.start, oriented.shape, shape, strict=True))
        if all(start < total and start + size > 0 for start, size, total in spans):
            target = tuple(slice(max(0, start), min(total, start + size)) for start, size, total in spans)
            source = tuple(slice(max(0, -start), min(size, total - start)) for start, size, total in spans)
            placed[target] = oriented[source]
        return placed


@dataclass(frozen=True, eq=False)
class Affine:
    """Maps voxel indices to RAS millimetres; index (0, 0, 0) is the centre of the first voxel.

    Raises:
        ScanError: if the matrix is not 4 x 4, not finite, or not invertible.
    """

    matrix: NDArray[np.float64]

    def __init__(self, matrix: ArrayLike) -> None:
        values = np.array(matrix, dtype=np.float64)
        _check_matrix(values)
        values.setflags(write=False)
        object.__setattr__(self, "matrix", values)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each axis, in mm."""
        x, y, z = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def origin(self) -> tuple[float, float, float]:
        """Position of the centre of the first voxel in RAS millimetres."""
        x, y, z = self.matrix[:3, 3]
        return float(x), float(y), float(z)

    @property
    def axis_codes(self) -> str:
        """One letter per axis, the nearest of R L A P S I, such as "RAS"."""
        return "".join(nibabel.orientations.ornt2axcodes(self._orientation()))

    @property
    def is_oblique(self) -> bool:
        """Whether any axis deviates from its nearest patient axis by more than about 0.1 degree."""
        directions = np.abs(self.matrix[:3, :3]) / np.array(self.spacing)
        return bool(directions.max(axis=0).min() < np.cos(np.radians(0.1)))

    @property
    def skew(self) -> float:
        """Largest deviation of two axes from perpendicular, in degrees; 0 for an orthogonal grid."""
        directions = self.matrix[:3, :3] / np.array(self.spacing)
        cosines = directions.T @ directions - np.eye(3)
        return float(np.degrees(np.arcsin(min(1.0, np.abs(cosines).max()))))

    def to_world(self, points: ArrayLike) -> NDArray[np.float64]:
        """Convert voxel indices, N x 3 and possibly fractional, to RAS millimetres, N x 3."""
        return np.asarray(points, dtype=np.float64) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def to_voxel(self, points: ArrayLike) -> NDArray[np.float64]:
        """Convert RAS millimetres, N x 3, to fractional voxel indices, N x 3."""
        inverse = np.linalg.inv(self.matrix)
        return np.asarray(points, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def permute(self, order: Sequence[int]) -> Affine:
        """Return the affine of `voxels.transpose(order)`."""
        return Affine(self.matrix[:, [*order, 3]])

    def flip(self, axis: int, size: int) -> Affine:
        """Return the affine of `np.flip(voxels, axis)`, where `size` is the number of voxels along the axis."""
        change = np.eye(4)
        change[axis, axis] = -1.0
        change[axis, 3] = size - 1
        return Affine(self.matrix @ change)

    def crop(self, start: Sequence[float]) -> Affine:
        """Return the affine of `voxels[start[0]:, start[1]:, start[2]:]`; a negative start stands for padding."""
        change = np.eye(4)
        change[:3, 3] = start
        return Affine(self.matrix @ change)

    def rescale(self, factors: Sequence[float]) -> Affine:
        """Return the affine of a grid with voxels `factors` times as large.

        The outer corner keeps its position, rather than the first voxel's centre, as in
        `torch.nn.functional.interpolate(align_corners=False)`.
        """
        change = np.diag([*factors, 1.0])
        change[:3, 3] = (np.asarray(factors, dtype=np.float64) - 1.0) / 2.0
        return Affine(self.matrix @ change)

    def nearest_ras(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """Return (order, flips) that bring the axes closest to R, A, S: transpose by `order`, then flip the axes marked True."""
        orientation = self._orientation()
        order = np.argsort(orientation[:, 0])
        x, y, z = (int(axis) for axis in order)
        flips = [bool(orientation[axis, 1] < 0) for axis in order]
        return (x, y, z), (flips[0], flips[1], flips[2])

    def is_close(self, other: Affine, tolerance: float = 1e-3) -> bool:
        """Return whether all entries of both matrices agree within `tolerance` (mm)."""
        return bool(np.allclose(self.matrix, other.matrix, rtol=0.0, atol=tolerance))

    def find_on(self, shape: Sequence[int], other: Affine, slack: float) -> Lattice | None:
        """Find where a grid lies on the grid of another affine, continued in all directions.

        Args:
            shape: number of voxels of the grid with this affine.
            other: affine of the other grid.
            slack: distance in voxels by which the corners may deviate.

        Returns:
            The placement, or None if the voxels do not coincide with voxels of the other grid.
        """
        steps = np.linalg.inv(self.matrix) @ other.matrix
        signs = np.rint(steps[:3, :3]).astype(np.int64)
        if not np.array_equal(np.abs(signs) @ np.abs(signs).T, np.eye(3)):
            return None
        # For a single slice, take a corner one voxel further, so that its thickness is compared with the other spacing too.
        corners = np.array(list(np.ndindex(2, 2, 2))) * np.maximum(np.asarray(shape) - 1, 1)
        offsets = corners - other.to_voxel(self.to_world(corners)) @ signs.T
        start = np.rint(offsets.mean(axis=0))
        if np.abs(offsets - start).max() > slack:
            return None
        order = np.abs(signs).argmax(axis=0)
        flips = [bool(signs[axis, column] < 0) for column, axis in enumerate(order)]
        ends = [start[axis] - (shape[axis] - 1) if flip else -start[axis] for axis, flip in zip(order, flips, strict=True)]
        x, y, z = (int(axis) for axis in order)
        return Lattice(order=(x, y, z), flips=(flips[0], flips[1], flips[2]), start=(int(ends[0]), int(ends[1]), int(ends[2])))

    def _orientation(self) -> NDArray[np.float64]:
        return nibabel.orientations.io_orientation(self.matrix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Affine) and np.array_equal(self.matrix, other.matrix)

    def __hash__(self) -> int:
        return hash(self.matrix.tobytes())

    def __repr__(self) -> str:
        spacing = " x ".join(f"{value:.4g}" for value in self.spacing)
        origin = ", ".join(f"{value:.4g}" for value in self.origin)
        return f"Affine({self.axis_codes}, {spacing} mm, origin {origin} mm)"


def describe_difference(one: Affine, other: Affine) -> str:
    """Describe how the grids of two affines differ, along the axes closest to R, A, S, with as many digits as needed."""
    first, second = (affine.permute(affine.nearest_ras()[0]) for affine in (one, other))
    parts = []
    if not np.allclose(first.spacing, second.spacing, rtol=1e-6, atol=0):
        parts.append("spacing {} against {} mm".format(*show_apart(first.spacing, second.spacing, " x ")))
    # Absolute values, since flipped axes have the same voxels.
    cosines = np.abs(np.sum(first.matrix[:3, :3] * second.matrix[:3, :3], axis=0)) / np.array(first.spacing) / second.spacing
    angle = float(np.degrees(np.arccos(np.clip(cosines, 0, 1))).max())
    if angle > 0.001:
        parts.append(f"axes turned by {angle:.3g} degrees")
    offset = second.to_voxel([first.origin])[0]
    if np.abs(offset - np.rint(offset)).max() > 0.001:
        origins = show_apart(first.origin, second.origin, ", ")
        parts.append("first voxel at {} against {} mm, not a whole number of voxels away".format(*origins))
    return "; ".join(parts) or "affine {} against {}".format(*show_apart(first.matrix[:3].ravel(), second.matrix[:3].ravel(), " "))


def show_apart(one: Iterable[float], other: Iterable[float], between: str) -> tuple[str, str]:
    """Format two lists of numbers with the fewest digits (at least 3) that distinguish them, joined by `between`."""
    first, second = list(one), list(other)
    for digits in range(3, 18):
        texts = [between.join(f"{value:.{digits}g}" for value in values) for values in (first, second)]
        if texts[0] != texts[1]:
            break
    return texts[0], texts[1]


def _check_matrix(matrix: NDArray[np.float64]) -> None:
    if matrix.shape != (4, 4):
        raise ScanError(f"an affine has 4 x 4 numbers, not {' x '.join(map(str, matrix.shape)) or 'one'}", do="Correct the header")
    if not (np.isfinite(matrix).all() and np.abs(matrix).max() < _FARTHEST_MM):
        do = "Correct the header, or convert the scan again"
        raise ScanError("the affine contains NaN, infinite or implausibly large numbers", do=do)
    if not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise ScanError("the last row of the affine is not 0 0 0 1", do="Correct the header, or convert the scan again")
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    if not edges.all():
        shown = " x ".join(f"{edge:.4g}" for edge in edges)
        raise ScanError(
            f"the spacing is {shown} mm; it must be above 0 on every axis", do="Correct the header, or convert the scan again"
        )
    if abs(np.linalg.det(matrix[:3, :3] / edges)) < _DEGENERATE:
        raise ScanError("the affine cannot be inverted: two axes are parallel", do="Correct the header, or convert the scan again")
