"""Combines the planes of a series into one affine, or explains why they do not form a volume. Pure functions; LPS in, RAS out.

Positions are measured along the normal of the planes, so that a tilted gantry is not mistaken for a wider spacing. They are
compared with the even grid that fits them best, since headers hold rounded numbers. Nothing is sheared, filled in or guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.records.counts import count_noun
from dagman.scans.affine import LPS_TO_RAS, Affine

_OFF_GRID_MM = 0.1
_OFF_GRID_SHARE = 0.01
_OFF_GRID_MOST = 0.2
"""Largest deviation of a slice from the even grid: 0.1 mm or a hundredth of the step, but never more than a fifth of the step."""
_WHOLE_MM = 0.5
"""Rounding error of numbers written in whole mm."""
_RECURRING = 4
"""Number of odd gaps that indicates numbers rounded to whole mm; a grid of 1 mm with a missing slice has only one odd gap."""
_TILT_TOLERANCE_DEGREES = 0.5
_DRIFT_TOLERANCE_MM = 0.1
_STRAY_TOLERANCE_MM = 0.5
_SAME_POSITION_MM = 0.01
_SAME_DIRECTION = 1e-3
_EXACT_MM = 1e-3
"""If all slices are closer than this to even positions between the first and the last, only these two determine the affine."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The geometry of one slice."""

    position: tuple[float, ...]
    "Centre of the first pixel in LPS mm."
    orientation: tuple[float, ...]
    "Directions along a row and along a column, six numbers."
    pixel_spacing: tuple[float, float]
    "Distance between rows and between columns, in mm."
    rows: int
    columns: int

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector perpendicular to the plane, right-handed with the row and column directions."""
        across = np.cross(self.orientation[:3], self.orientation[3:])
        return across / (np.linalg.norm(across) or 1.0)

    @property
    def distance(self) -> float:
        """Position along the plane's own normal, in mm."""
        return float(self.normal @ np.array(self.position))

    def fits(self, other: Plane) -> bool:
        """Return whether both can be slices of one volume, with equal directions, pixel size and matrix."""
        if (self.rows, self.columns) != (other.rows, other.columns):
            return False
        if (self.pixel_spacing, self.orientation) == (other.pixel_spacing, other.orientation):
            return bool(np.isfinite((*self.pixel_spacing, *self.orientation)).all())
        rounding = _round_directions(self) + _round_directions(other)
        return bool(np.allclose(self.pixel_spacing, other.pixel_spacing, rtol=0, atol=1e-3)) and bool(
            np.allclose(self.orientation, other.orientation, rtol=0, atol=max(_SAME_DIRECTION, rounding))
        )


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The planes of a volume, in order, and its affine."""

    order: tuple[int, ...]
    "Indices of the planes in their order along the normal."
    affine: Affine
    "Maps voxels (column, row, slice) to RAS mm."
    places: NDArray[np.float64] | None = None
    "For uneven planes: the position of each ordered plane on the affine's slices, as a fractional index. None if planes are even."
    notes: tuple[str, ...] = ()


def order_planes(planes: Sequence[Plane]) -> tuple[list[int], Affine]:
    """Return the order of the planes along their normal, and the affine (to RAS mm) of voxels (column, row, slice).

    Raises:
        ScanError: if the planes do not form a volume: planes that differ, a single plane, equal positions, tilt, uneven gaps.
    """
    stack = stack_planes(planes)
    return list(stack.order), stack.affine


def stack_planes(planes: Sequence[Plane], *, tilted: bool = False, widest_gap: float = 0.0) -> Stack:
    """Combine planes into a volume.

    Args:
        planes: the planes, in any order.
        tilted: accept a tilted gantry; the affine is then sheared like the slices.
        widest_gap: accept uneven gaps up to this width in mm; the affine is then of even slices, at the usual distance, to which
            `Stack.places` refers.

    Raises:
        ScanError: as `order_planes`, except for what is accepted.
    """
    first = planes[0]
    for plane in planes:
        _check_plane(plane)
    if not all(first.fits(plane) for plane in planes):
        raise ScanError("slices differ in orientation, pixel size or matrix", do="Give one volume per series")
    if len(planes) < 2:
        raise ScanError("is one slice", do="Give a volume of at least 2 slices")
    positions = np.array([plane.position for plane in planes])
    order = np.argsort(positions @ first.normal, kind="stable")
    positions = positions[order]
    equal = _find_equal(positions @ first.normal)
    if equal:
        raise ScanError(equal, do="Give one volume per series, with each slice once")
    stray, tilt, uneven = _find_stray(positions, first), _find_tilt(positions, first), _find_uneven(positions, first.normal)
    widest = float(np.diff(positions @ first.normal).max())
    bridged = bool(uneven) and widest <= widest_gap
    problems = [*stray, *([] if bridged else uneven)]
    if problems or not tilted:
        problems = [*([] if stray else tilt), *problems]
    if problems:
        raise ScanError("; ".join(problems), do=_list_remedies(stray, tilt, widest if uneven and not bridged else None))
    indices = tuple(int(index) for index in order)
    if bridged:
        matrix, places = _build_bridged(positions, first)
        notes = tuple(f"{text}; values between slices were interpolated" for text in uneven)
        return Stack(order=indices, affine=Affine(LPS_TO_RAS @ matrix), places=places, notes=notes)
    return Stack(order=indices, affine=Affine(LPS_TO_RAS @ _build_matrix(positions, first, sheared=bool(tilt))))


def _list_remedies(stray: list[str], tilt: list[str], widest: float | None) -> str:
    """Return what to do about these problems; `widest` is the gap in mm that was too wide, if any."""
    if stray:
        return "Export the series again, one volume per series, or exclude it"
    if tilt:
        export = "Export the series without gantry tilt" if widest is None else "Export the complete series without gantry tilt"
        return f"{export}, exclude it, or prepare it with --tilt resample{f' --widest-gap {_round_up(widest)}' if widest else ''}"
    return f"Export the complete series, exclude it, or prepare it with --widest-gap {_round_up(widest or 0.0)}"


def _round_up(millimetres: float) -> str:
    """Format a gap as the value of an option, rounded up."""
    return f"{math.ceil(millimetres * 10 - 1e-6) / 10:g}"


def find_shared_places(planes: Sequence[Plane], *, alone: bool = False) -> list[list[int]]:
    """Find planes of equal orientation that share a position along their normal.

    Args:
        planes: the planes.
        alone: list also the positions of single planes.

    Returns:
        For each position, in order, the indices of its planes.
    """
    distances = np.array([plane.position for plane in planes]) @ planes[0].normal
    order = np.argsort(distances, kind="stable")
    starts = np.flatnonzero(~(np.diff(distances[order]) < _SAME_POSITION_MM)) + 1
    return [[int(index) for index in members] for members in np.split(order, starts) if alone or len(members) > 1]


def are_even(planes: Sequence[Plane]) -> bool:
    """Return whether planes of equal orientation are evenly spaced along their normal, without shared positions."""
    positions = np.array([plane.position for plane in planes])
    if len(planes) < 2 or not np.isfinite(positions).all() or find_shared_places(planes):
        return False
    normal = planes[0].normal
    return not _find_uneven(positions[np.argsort(positions @ normal, kind="stable")], normal)


def _check_plane(plane: Plane) -> None:
    numbers = (*plane.position, *plane.orientation, *plane.pixel_spacing)
    if not np.isfinite(numbers).all():
        raise ScanError("position, orientation or pixel spacing is not a number", do="Correct the header, or exclude the series")
    if min(plane.pixel_spacing) <= 0:
        shown = " x ".join(f"{value:.4g}" for value in plane.pixel_spacing)
        do = "Correct the header, or exclude the series"
        raise ScanError(f"the pixel spacing is {shown} mm; both values must be above 0", do=do)
    row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    # The error of a product of two directions is up to 2 sqrt(3) times the error of each number.
    tolerance = 1e-2 + 4 * _round_directions(plane)
    are_unit = np.allclose([row @ row, column @ column], 1.0, rtol=0, atol=tolerance)
    if not are_unit or abs(row @ column) > tolerance:
        raise ScanError("the directions of rows and columns are not perpendicular", do="Correct the header, or exclude the series")


def _find_half_unit(values: NDArray[np.float64]) -> float:
    """Return the rounding error of numbers written with at most 4 decimals (half a unit of the last one); 0 if they have more."""
    for decimals in range(5):
        # With a tolerance for numbers that were once stored as float32.
        if (abs(values - np.round(values, decimals)) <= 1e-6 + 1e-7 * abs(values)).all():
            return 0.5 * 10.0**-decimals
    return 0.0


def _round_directions(plane: Plane) -> float:
    """Return the rounding error of the directions' numbers; 0 if they are exact, or too coarse to be plausible."""
    values = np.array(plane.orientation)
    norms = np.array([values[:3] @ values[:3], values[3:] @ values[3:], 1.0 + values[:3] @ values[3:]])
    half = 0.0 if np.allclose(norms, 1.0, rtol=0, atol=1e-6) else _find_half_unit(values)
    return half if half <= 0.005 else 0.0


def _round_positions(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rounding error of each coordinate in mm; 0 if it is the same in all slices."""
    return np.array([0.0 if np.ptp(values) == 0 else _find_half_unit(values) for values in positions.T])


def _find_equal(distances: NDArray[np.float64]) -> str:
    same = np.flatnonzero(np.diff(distances) < _SAME_POSITION_MM)
    if not len(same):
        return ""
    shared = f"the first shared by slices {same[0] + 1} and {same[0] + 2}"
    return f"{len(distances)} slices lie at {count_noun(len(distances) - len(same), 'position')} ({shared})"


def _find_stray(positions: NDArray[np.float64], plane: Plane) -> list[str]:
    stray = _measure_drift(positions, plane.normal)[2]
    if stray > max(_STRAY_TOLERANCE_MM, _round_aside(positions)):
        return [f"slices are not aligned (up to {stray:.1f} mm off)"]
    return []


def _find_tilt(positions: NDArray[np.float64], plane: Plane) -> list[str]:
    along, drift, _ = _measure_drift(positions, plane.normal)
    angle = float(np.degrees(np.arctan(np.linalg.norm(drift))))
    excused = max(_TILT_TOLERANCE_DEGREES, _turn_by_rounding(plane))
    if angle > excused and np.linalg.norm(drift) * along > max(_DRIFT_TOLERANCE_MM, _round_aside(positions)):
        return [f"the gantry is tilted by {angle:.1f} degrees (slices are shifted against each other)"]
    return []


def _round_aside(positions: NDArray[np.float64]) -> float:
    """Return how far rounding may shift one end of the series sideways relative to the other, in mm."""
    rounding = _round_positions(positions)
    # Rounding to whole millimetres is too coarse to explain why a slice is off the line.
    return 2 * float(np.linalg.norm(np.where(rounding < _WHOLE_MM, rounding, 0.0)))


def _turn_by_rounding(plane: Plane) -> float:
    """Return the degrees by which rounded directions may rotate the normal."""
    return float(np.degrees(_round_directions(plane) * np.sqrt(6)))


def _measure_drift(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], float]:
    """Return the length along the normal (mm), the sideways drift (mm per mm), and the largest distance from the line (mm)."""
    along = (positions - positions[0]) @ normal
    sideways = positions - positions[0] - along[:, None] * normal
    drift = along @ sideways / (along @ along)
    stray = np.linalg.norm(sideways - along[:, None] * drift, axis=1).max()
    return float(along[-1]), drift, float(stray)


def _find_uneven(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> list[str]:
    distances = positions @ normal
    gaps = np.diff(distances)
    step, off = _fit_grid(distances)
    tolerance = max(min(_OFF_GRID_MM, _OFF_GRID_MOST * step), _OFF_GRID_SHARE * step)
    rounding = _round_positions(positions)
    fine = float(abs(normal) @ np.where(rounding < _WHOLE_MM, rounding, 0.0))
    if off <= max(tolerance, fine) + 1e-6:
        return []
    slack = max(_OFF_GRID_MM, _OFF_GRID_SHARE * step, 2 * fine)
    usual = float(np.median(gaps))
    # With few gaps, the median may be the gap at a missing slice; the smallest gap never is.
    usual = usual if abs(gaps - usual).min() <= slack else float(gaps.min())
    odd = np.flatnonzero(abs(gaps - usual) > slack)
    if off <= float(abs(normal) @ rounding) + 1e-6 and len(odd) >= _RECURRING:
        return []
    return [_describe_uneven(gaps, odd, usual, slack, f"allowed: within {tolerance:.2g} mm of even", off)]


def _fit_grid(distances: NDArray[np.float64]) -> tuple[float, float]:
    """Return the step of the even grid with the smallest largest deviation of a slice, and this deviation (mm)."""
    count = np.arange(len(distances))
    gaps = np.diff(distances)
    low, high = float(gaps.min()), float(gaps.max())

    def spread(step: float) -> float:
        return float(np.ptp(distances - step * count))

    # Ternary search: the spread is convex in the step, so the third that cannot contain the minimum is dropped.
    while high - low > 1e-9 * max(1.0, high):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if spread(left) <= spread(right) else (left, high)
    step = (low + high) / 2
    return step, spread(step) / 2


def _describe_uneven(gaps: NDArray[np.float64], odd: NDArray[np.intp], usual: float, slack: float, allowed: str, off: float) -> str:
    jumps = np.flatnonzero(abs(np.diff(gaps)) > slack)
    if len(jumps) == 1 and 2 <= jumps[0] + 1 <= len(gaps) - 2:
        change = int(jumps[0]) + 1
        before, after = gaps[:change].mean(), gaps[change:].mean()
        return f"spacing changes from {before:.4g} to {after:.4g} mm after slice {change + 1}"
    if not len(odd):
        return f"slices are about {usual:.4g} mm apart, but deviate by up to {off:.2g} mm from an even grid ({allowed})"
    first = int(odd[0])
    text = f"slices are {usual:.4g} mm apart, but {gaps[first]:.4g} mm after slice {first + 1} ({allowed})"
    multiples = gaps[odd] / usual
    if (abs(multiples - np.rint(multiples)) * usual <= slack * 2).all() and (multiples > 1.5).all():
        missing = int(np.rint(multiples).sum()) - len(odd)
        return f"{text}: {count_noun(missing, 'slice is', 'slices are')} missing"
    return f"{text}, {len(odd)} such gaps in all" if len(odd) > 1 else text


def _build_bridged(positions: NDArray[np.float64], plane: Plane) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrix from voxels (column, row, slice) to LPS mm of even slices from the first plane to the last.

    Returns also the positions of the planes, as fractional indices of these slices.
    """
    distances = positions @ plane.normal - positions[0] @ plane.normal
    gaps = np.diff(distances)
    usual = float(np.median(gaps))
    usual = usual if abs(gaps - usual).min() <= _OFF_GRID_MM else float(gaps.min())
    count = max(round(distances[-1] / usual), 1)
    matrix = np.eye(4)
    matrix[:3, 0] = np.array(plane.orientation[:3]) * plane.pixel_spacing[1]
    matrix[:3, 1] = np.array(plane.orientation[3:]) * plane.pixel_spacing[0]
    matrix[:3, 2] = (positions[-1] - positions[0]) / count
    matrix[:3, 3] = positions[0]
    return matrix, distances / distances[-1] * count


def _build_matrix(positions: NDArray[np.float64], plane: Plane, *, sheared: bool) -> NDArray[np.float64]:
    """Return the matrix from voxels (column, row, slice) to LPS mm for even planes; without shear, unless `sheared`."""
    row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    count = np.arange(len(positions)) - (len(positions) - 1) / 2
    step, start = (positions[-1] - positions[0]) / (len(positions) - 1), positions[0]
    if abs(start + (count - count[0])[:, None] * step - positions).max() > _EXACT_MM:
        step = count @ positions / (count @ count)
        start = positions.mean(axis=0) + count[0] * step
    along = float(step @ plane.normal)
    angle = np.degrees(np.arctan2(np.linalg.norm(step - along * plane.normal), along))
    if not sheared and _TILT_TOLERANCE_DEGREES < angle <= _turn_by_rounding(plane):
        # Positions determine the normal more precisely than directions with two decimals.
        across = step / np.linalg.norm(step)
        row, column = row - (row @ across) * across, column - (column @ across) * across
    elif not sheared and angle > _TILT_TOLERANCE_DEGREES:
        # There are only a few slices, whose positions were rounded.
        step = along * plane.normal
        start = positions.mean(axis=0) + count[0] * step
    if _round_directions(plane):
        row = row / np.linalg.norm(row)
        column = column - (column @ row) * row
        column = column / np.linalg.norm(column)
    matrix = np.eye(4)
    matrix[:3, 0] = row * plane.pixel_spacing[1]
    matrix[:3, 1] = column * plane.pixel_spacing[0]
    matrix[:3, 2] = step
    matrix[:3, 3] = start
    return matrix
