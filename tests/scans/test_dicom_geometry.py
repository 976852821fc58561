"""Planes become an affine only where they are one straight, even, complete volume; all else is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagman.errors import ScanError
from dagman.scans.dicom.geometry import Plane, order_planes


def stack(offsets, *, tilt=0.0, sideways=(0.0, 0.0, 0.0), orientation=(1, 0, 0, 0, 1, 0), spacing=(0.7, 0.8)) -> list[Plane]:
    """Axial planes at z offsets (mm); `tilt` degrees turns each plane about x while positions stay on one vertical line."""
    angle = np.radians(tilt)
    orientation = (*orientation[:3], 0.0, float(np.cos(angle)), float(-np.sin(angle))) if tilt else orientation
    return [
        Plane(
            position=(10.0 + sideways[0] * z, 20.0 + sideways[1] * z, 30.0 + z),
            orientation=orientation,
            pixel_spacing=spacing,
            rows=5,
            columns=4,
        )
        for z in offsets
    ]


def reason(planes) -> str:
    with pytest.raises(ScanError) as caught:
        order_planes(planes)
    return caught.value.what


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.permutations(range(6)))
def test_any_file_order_gives_one_volume(order):
    planes = stack([2.5 * index for index in order])
    found, affine = order_planes(planes)
    assert [planes[index].position[2] for index in found] == [30 + 2.5 * step for step in range(6)]
    # Pixel spacing is (between rows, between columns); LPS turns into RAS.
    assert affine.spacing == pytest.approx((0.8, 0.7, 2.5))
    assert affine.axis_codes == "LPS"
    assert affine.origin == pytest.approx((-10, -20, 30))


@pytest.mark.parametrize(
    ("planes", "text"),
    [
        (stack([0]), "is one slice"),
        (stack([0, 5, 5, 10]), "4 slices lie at 3 positions (the first shared by slices 2 and 3)"),
        (
            stack([0, 5, 10, 20]),
            "slices are 5 mm apart, but 10 mm after slice 3 (allowed: within 0.1 mm of even): 1 slice is missing",
        ),
        (
            stack([0, 2, 8, 10, 12, 16]),
            "slices are 2 mm apart, but 6 mm after slice 2 (allowed: within 0.1 mm of even): 3 slices are missing",
        ),
        (
            stack([0, 4, 8, 11, 15, 19]),
            "slices are 4 mm apart, but 3 mm after slice 3 (allowed: within 0.1 mm of even)",
        ),
        (stack([0, 2.5, 5, 7.5, 15, 22.5, 30]), "spacing changes from 2.5 to 7.5 mm after slice 4"),
        (
            stack(np.cumsum(np.linspace(2.2, 2.35, 20))),
            "slices are about 2.279 mm apart, but deviate by up to 0.18 mm from an even grid (allowed: within 0.1 mm of even)",
        ),
        (stack([0, 5]) + stack([10], spacing=(0.6, 0.8)), "slices differ in orientation, pixel size or matrix"),
        (stack([0, 5]) + stack([10], orientation=(0, 1, 0, 0, 0, -1)), "slices differ in orientation, pixel size or matrix"),
        (stack([0, 5], spacing=(0.0, 1.0)), "the pixel spacing is 0 x 1 mm; both values must be above 0"),
        (stack([0, 5], orientation=(1, 0, 0, 1, 0, 0)), "the directions of rows and columns are not perpendicular"),
        (stack([0, np.nan]), "position, orientation or pixel spacing is not a number"),
    ],
)
def test_what_is_no_volume_is_named(planes, text):
    assert reason(planes) == text


@pytest.mark.parametrize("angle", [-22.0, 5.0, 14.0])
def test_a_tilted_gantry_is_named_with_its_angle(angle):
    assert f"the gantry is tilted by {abs(angle):.1f} degrees" in reason(stack(np.arange(8) * 2.5, tilt=angle))


def test_tilt_and_a_missing_slice_are_both_named():
    text = reason(stack([0, 1, 2, 4], tilt=15))
    assert "the gantry is tilted by 15.0 degrees" in text
    assert "1 slice is missing" in text


def test_positions_rounded_in_the_header_are_no_fault():
    planes = stack([0.0, 0.69, 1.25, 1.82, 2.5])
    assert order_planes(planes)[1].spacing[2] == pytest.approx(0.625, abs=0.02)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    step=st.sampled_from([0.5, 0.625, 0.7, 0.75, 1.0, 1.25, 2.5, 2.75, 3.75, 6.25]),
    start=st.floats(-500, 500),
    digits=st.sampled_from([1, 2, 3]),
    count=st.integers(2, 60),
    turned=st.booleans(),
)
def test_even_slices_stay_even_however_their_numbers_are_rounded(step, start, digits, count, turned):
    angle = np.radians(20 if turned else 0)
    across = np.array([0, np.sin(angle), np.cos(angle)])
    directions = tuple(float(v) for v in np.round([1, 0, 0, 0, np.cos(angle), -np.sin(angle)], 6))
    planes = [
        Plane(
            position=tuple(float(v) for v in np.round([-120.7, 33.3, start] + step * i * across, digits)),
            orientation=directions,
            pixel_spacing=(0.7, 0.7),
            rows=4,
            columns=4,
        )
        for i in range(count)
    ]
    order, affine = order_planes(planes)
    assert order == list(range(count))
    # An end is off by at most half a unit, so the step by at most a unit over its number.
    assert affine.spacing[2] == pytest.approx(step, abs=2 * 10**-digits / (count - 1))
    assert affine.skew < 0.5
    assert affine.to_world([[0, 0, count - 1]])[0][2] == pytest.approx(start + step * (count - 1) * across[2], abs=10**-digits)


@pytest.mark.parametrize("step", [1.25, 2.5, 3.75, 6.25])
def test_places_in_whole_millimetres_are_even_where_the_rounding_recurs(step):
    assert order_planes(stack(np.round(step * np.arange(40))))[1].spacing[2] == pytest.approx(step, abs=0.03)


@pytest.mark.parametrize("lost", [[20], [12, 27]])
@pytest.mark.parametrize("step", [0.5, 0.625, 1, 2.5, 5])
def test_no_rounding_excuses_a_missing_slice(step, lost):
    places = np.round(np.delete(np.arange(40), lost) * step, 1)
    assert reason(stack(places)).endswith(f"{len(lost)} slices are missing" if len(lost) > 1 else "1 slice is missing")


@pytest.mark.parametrize("angle", [15.0, 37.0])
def test_directions_of_two_decimals_are_no_tilt(angle):
    turn = np.radians(angle)
    rows = np.round([np.cos(turn), 0, np.sin(turn), 0, 1, 0], 2)
    across = np.array([-np.sin(turn), 0, np.cos(turn)])
    planes = [
        Plane(position=tuple(10 + 2.5 * i * across), orientation=tuple(rows), pixel_spacing=(0.7, 0.7), rows=4, columns=4)
        for i in range(30)
    ]
    affine = order_planes(planes)[1]
    assert affine.spacing == pytest.approx((0.7, 0.7, 2.5), abs=1e-6)
    assert affine.skew < 0.5


def test_a_slice_beside_the_line_is_named():
    planes = [*stack([0, 5, 15, 20]), *stack([10], sideways=(0.3, 0, 0))]
    assert "slices are not aligned" in reason(planes)
