"""Where voxels lie: a 4 x 4 matrix from voxel indices to RAS millimetres.

Axis letters: R, A, S = the index grows to the patient's right, anterior, superior; L, P, I = the opposite.
World coordinates are RAS everywhere in dagman; `LPS_TO_RAS` is used by the readers of ITK formats and DICOM alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import nibabel.orientations
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagman.errors import ScanError

LPS_TO_RAS: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK and DICOM count x to the patient's left and y to the back; two signs change, for points and matrices alike."""

_FARTHEST_MM = 1e9
"""Beyond it a header holds rubbish, and arithmetic would overflow."""

_DEGENERATE = 1e-6
"""Smallest volume of a voxel relative to the product of its edges; below it two axes are parallel."""


@dataclass(frozen=True)
class Lattice:
    """How a grid lies on another: transpose by `order`, flip the axes marked True; its first voxel is then the other's `start`."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    start: tuple[int, int, int]

    def place(self, voxels: NDArray, shape: Sequence[int]) -> NDArray:
        """The voxels on the other grid, of `shape`: 0 where they do not reach, cut where they reach beyond."""
        turned = np.flip(voxels.transpose(self.order), tuple(axis for axis in range(3) if self.flips[axis]))
        if turned.shape == tuple(shape) and not any(self.start):
            return turned
        placed = np.zeros(tuple(shape), dtype=voxels.dtype)
        spans = list(zip(self.start, turned.shape, shape, strict=True))
        if all(start < whole and start + size > 0 for start, size, whole in spans):
            inner = tuple(slice(max(0, start), min(whole, start + size)) for start, size, whole in spans)
            outer = tuple(slice(max(0, -start), min(size, whole - start)) for start, size, whole in spans)
            placed[inner] = turned[outer]
        return placed


@dataclass(frozen=True, eq=False)
class Affine:
    """Voxel indices to RAS millimetres; index (0, 0, 0) is the centre of the first voxel.

    Raises ScanError when the matrix is not 4 x 4, not finite, or cannot be inverted.
    """

    matrix: NDArray[np.float64]

    def __init__(self, matrix: ArrayLike) -> None:
        wanted = np.array(matrix, dtype=np.float64)
        _check_matrix(wanted)
        wanted.setflags(write=False)
        object.__setattr__(self, "matrix", wanted)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each axis, in mm."""
        x, y, z = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def origin(self) -> tuple[float, float, float]:
        """RAS millimetres of the centre of the first voxel."""
        x, y, z = self.matrix[:3, 3]
        return float(x), float(y), float(z)

    @property
    def axis_codes(self) -> str:
        """One letter an axis, the nearest of R L A P S I, such as "RAS"."""
        return "".join(nibabel.orientations.ornt2axcodes(self._orientation()))

    @property
    def is_oblique(self) -> bool:
        """Whether any axis leaves its nearest patient axis by more than about 0.1 degree."""
        directions = np.abs(self.matrix[:3, :3]) / np.array(self.spacing)
        return bool(directions.max(axis=0).min() < np.cos(np.radians(0.1)))

    @property
    def skew(self) -> float:
        """Degrees by which two axes leave the perpendicular, the worst pair; 0 for a straight grid."""
        directions = self.matrix[:3, :3] / np.array(self.spacing)
        between = directions.T @ directions - np.eye(3)
        return float(np.degrees(np.arcsin(min(1.0, np.abs(between).max()))))

    def to_world(self, points: ArrayLike) -> NDArray[np.float64]:
        """RAS millimetres, N x 3, of voxel indices, N x 3 (fractions allowed)."""
        return np.asarray(points, dtype=np.float64) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def to_voxel(self, points: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices with fractions, N x 3, of RAS millimetres, N x 3."""
        inverse = np.linalg.inv(self.matrix)
        return np.asarray(points, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def permute(self, order: Sequence[int]) -> Affine:
        """The affine of `voxels.transpose(order)`."""
        return Affine(self.matrix[:, [*order, 3]])

    def flip(self, axis: int, size: int) -> Affine:
        """The affine of `np.flip(voxels, axis)`, where `size` is the number of voxels along it."""
        change = np.eye(4)
        change[axis, axis] = -1.0
        change[axis, 3] = size - 1
        return Affine(self.matrix @ change)

    def crop(self, start: Sequence[float]) -> Affine:
        """The affine of `voxels[start[0]:, start[1]:, start[2]:]`; negative starts are padding."""
        change = np.eye(4)
        change[:3, 3] = start
        return Affine(self.matrix @ change)

    def rescale(self, factors: Sequence[float]) -> Affine:
        """The affine of voxels `factors` times as large that start at the same outer corner.

        The corner, not the first centre, stays: as `torch.nn.functional.interpolate(align_corners=False)` samples.
        """
        change = np.diag([*factors, 1.0])
        change[:3, 3] = (np.asarray(factors, dtype=np.float64) - 1.0) / 2.0
        return Affine(self.matrix @ change)

    def nearest_ras(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """(order, flips) that bring the axes nearest to R, A, S: transpose by `order`, then flip the axes marked True."""
        orientation = self._orientation()
        order = np.argsort(orientation[:, 0])
        x, y, z = (int(axis) for axis in order)
        flips = [bool(orientation[axis, 1] < 0) for axis in order]
        return (x, y, z), (flips[0], flips[1], flips[2])

    def is_close(self, other: Affine, tolerance: float = 1e-3) -> bool:
        """Whether both place voxels alike: each entry within `tolerance` (mm)."""
        return bool(np.allclose(self.matrix, other.matrix, rtol=0.0, atol=tolerance))

    def find_on(self, shape: Sequence[int], other: Affine, slack: float) -> Lattice | None:
        """Where a grid of `shape` lies on the lattice of another affine; None if its voxels are not voxels of that lattice.

        `slack`: voxels by which its corners may lie off.
        """
        steps = np.linalg.inv(self.matrix) @ other.matrix
        signs = np.rint(steps[:3, :3]).astype(np.int64)
        if not np.array_equal(np.abs(signs) @ np.abs(signs).T, np.eye(3)):
            return None
        # Across a single slice, its thickness must be the other's spacing, too.
        corners = np.array(list(np.ndindex(2, 2, 2))) * np.maximum(np.asarray(shape) - 1, 1)
        offsets = corners - other.to_voxel(self.to_world(corners)) @ signs.T
        start = np.rint(offsets.mean(axis=0))
        if np.abs(offsets - start).max() > slack:
            return None
        order = np.abs(signs).argmax(axis=0)
        flips = [bool(signs[axis, place] < 0) for place, axis in enumerate(order)]
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
    """What distinguishes the lattices of two affines, along the axes nearest to R, A, S, with as many digits as that takes."""
    first, second = (affine.permute(affine.nearest_ras()[0]) for affine in (one, other))
    parts = []
    if not np.allclose(first.spacing, second.spacing, rtol=1e-6, atol=0):
        parts.append("spacing {} against {} mm".format(*show_apart(first.spacing, second.spacing, " x ")))
    # Axes that run the other way are no other lattice.
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
    """Two lists of numbers as text, with the fewest digits (at least 3) that show them to differ."""
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
        raise ScanError("the affine holds NaN, infinite or absurd numbers", do="Correct the header, or convert the scan again")
    if not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise ScanError("the last row of the affine is not 0 0 0 1", do="Correct the header, or convert the scan again")
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    if not edges.all():
        shown = " x ".join(f"{edge:.4g}" for edge in edges)
        raise ScanError(
            f"the spacing is {shown} mm; every axis needs more than 0", do="Correct the header, or convert the scan again"
        )
    if abs(np.linalg.det(matrix[:3, :3] / edges)) < _DEGENERATE:
        raise ScanError("the affine cannot be inverted: two axes are parallel", do="Correct the header, or convert the scan again")
