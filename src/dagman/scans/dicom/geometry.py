"""Planes of a series to one affine, or a reason why they are no volume. Pure arithmetic; LPS in, RAS out.

Gaps are measured along the normal of the planes, so that a tilted gantry is not taken for a wider spacing. Nothing is
sheared, filled or guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.scans.affine import LPS_TO_RAS, Affine

_GAP_TOLERANCE_MM = 0.1
_GAP_TOLERANCE_SHARE = 0.01
_TILT_TOLERANCE_DEGREES = 0.5
_DRIFT_TOLERANCE_MM = 0.1
_STRAY_TOLERANCE_MM = 0.5
_SAME_POSITION_MM = 0.01
_SAME_DIRECTION = 1e-3


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One slice: position of its first pixel's centre (LPS mm), directions of a row and of a column, mm a pixel."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the plane, right-handed with row and column direction."""
        across = np.cross(self.orientation[:3], self.orientation[3:])
        return across / (np.linalg.norm(across) or 1.0)

    @property
    def distance(self) -> float:
        """Place along the plane's own normal, mm."""
        return float(self.normal @ np.array(self.position))

    def fits(self, other: Plane) -> bool:
        """Whether both can be slices of one volume: same directions, pixel size and matrix."""
        return (
            (self.rows, self.columns) == (other.rows, other.columns)
            and bool(np.allclose(self.pixel_spacing, other.pixel_spacing, rtol=0, atol=1e-3))
            and bool(np.allclose(self.orientation, other.orientation, rtol=0, atol=_SAME_DIRECTION))
        )


def order_planes(planes: Sequence[Plane]) -> tuple[list[int], Affine]:
    """The order of the planes along their normal, and the affine (to RAS mm) of voxels (column, row, slice) in that order.

    Raises ScanError with all that is wrong: unlike planes, one plane alone, equal positions, tilt, uneven gaps.
    """
    first = planes[0]
    for plane in planes:
        _check_plane(plane)
    if not all(first.fits(plane) for plane in planes):
        raise ScanError("slices differ in orientation, pixel size or matrix", do="Give one volume a series")
    if len(planes) < 2:
        raise ScanError("is one slice", do="Give a volume of at least 2 slices")
    positions = np.array([plane.position for plane in planes])
    distances = positions @ first.normal
    order = np.argsort(distances, kind="stable")
    positions, distances = positions[order], distances[order]
    problems = _find_equal(distances) or _find_tilt(positions, distances, first.normal) + _find_uneven(distances)
    if problems:
        raise ScanError("; ".join(problems), do="Export the complete, straight series, or leave it out")
    matrix = np.eye(4)
    matrix[:3, 0] = np.array(first.orientation[:3]) * first.pixel_spacing[1]
    matrix[:3, 1] = np.array(first.orientation[3:]) * first.pixel_spacing[0]
    matrix[:3, 2] = (positions[-1] - positions[0]) / (len(planes) - 1)
    matrix[:3, 3] = positions[0]
    return [int(index) for index in order], Affine(LPS_TO_RAS @ matrix)


def have_equal_positions(planes: Sequence[Plane]) -> bool:
    """Whether two of the planes lie at one place along their normal."""
    distances = np.sort([plane.distance for plane in planes])
    return bool((np.diff(distances) < _SAME_POSITION_MM).any())


def _check_plane(plane: Plane) -> None:
    numbers = (*plane.position, *plane.orientation, *plane.pixel_spacing)
    if not np.isfinite(numbers).all():
        raise ScanError("position, orientation or pixel spacing is not a number", do="Mend the header, or leave the series out")
    if min(plane.pixel_spacing) <= 0:
        found = " x ".join(f"{value:.4g}" for value in plane.pixel_spacing)
        raise ScanError(f"the pixel spacing is {found} mm; both need more than 0", do="Mend the header, or leave the series out")
    row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    unit = np.allclose([row @ row, column @ column], 1.0, atol=1e-2)
    if not unit or abs(row @ column) > 1e-2:
        raise ScanError("the directions of rows and columns are not perpendicular", do="Mend the header, or leave the series out")


def _find_equal(distances: NDArray[np.float64]) -> list[str]:
    same = np.flatnonzero(np.diff(distances) < _SAME_POSITION_MM)
    if not len(same):
        return []
    return [f"{len(same) + 1} of {len(distances)} slices lie at the same position as another (first: slice {same[0] + 1})"]


def _find_tilt(positions: NDArray[np.float64], distances: NDArray[np.float64], normal: NDArray[np.float64]) -> list[str]:
    along = distances - distances[0]
    sideways = positions - positions[0] - along[:, None] * normal
    drift = along @ sideways / (along @ along)
    stray = np.linalg.norm(sideways - along[:, None] * drift, axis=1).max()
    if stray > _STRAY_TOLERANCE_MM:
        return [f"slices do not lie in one line (up to {stray:.1f} mm beside it)"]
    angle = float(np.degrees(np.arctan(np.linalg.norm(drift))))
    if angle > _TILT_TOLERANCE_DEGREES and np.linalg.norm(drift) * along[-1] > _DRIFT_TOLERANCE_MM:
        return [f"the gantry is tilted by {angle:.1f} degrees (slices are shifted against each other)"]
    return []


def _find_uneven(distances: NDArray[np.float64]) -> list[str]:
    gaps = np.diff(distances)
    usual = float(np.median(gaps))
    tolerance = max(_GAP_TOLERANCE_MM, _GAP_TOLERANCE_SHARE * usual)
    # The median of few gaps may itself be a hole; a hole is never the smallest gap.
    usual = usual if abs(gaps - usual).min() <= tolerance else float(gaps.min())
    odd = np.flatnonzero(abs(gaps - usual) > tolerance)
    if not len(odd):
        return []
    first = int(odd[0])
    wanted = f"wanted: equal within {tolerance:.2g} mm"
    text = f"slices are {usual:.4g} mm apart, but {gaps[first]:.4g} mm after slice {first + 1} ({wanted})"
    multiples = gaps[odd] / usual
    if (abs(multiples - np.rint(multiples)) * usual <= tolerance * 2).all() and (multiples > 1.5).all():
        lost = int(np.rint(multiples).sum()) - len(odd)
        return [f"{text}: {lost} {'slice is' if lost == 1 else 'slices are'} missing"]
    return [f"{text}, {len(odd)} such gaps in all"] if len(odd) > 1 else [text]
