"""An affine says where voxels lie: its arithmetic against brute force, and what it refuses at birth."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagman.errors import ScanError
from dagman.scans.affine import LPS_TO_RAS, Affine

ORDERS = list(itertools.permutations(range(3)))


def oblique(degrees: float) -> Affine:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = turn @ np.diag([0.5, 0.7, 2.0, 1.0])
    matrix[:3, 3] = [3, -4, 5]
    return Affine(matrix)


def test_spacing_origin_and_letters_are_read_off_the_matrix():
    affine = Affine([[-0.5, 0, 0, 10], [0, -0.7, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]])
    assert affine.spacing == (0.5, 0.7, 2.0)
    assert affine.origin == (10, 20, 30)
    assert affine.axis_codes == "LPS"
    assert not affine.is_oblique
    assert repr(affine) == "Affine(LPS, 0.5 x 0.7 x 2 mm, origin 10, 20, 30 mm)"


def test_lps_and_ras_differ_by_two_signs():
    assert np.array_equal(LPS_TO_RAS @ [1, 2, 3, 1], [-1, -2, 3, 1])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(-80, 80), st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_to_voxel_undoes_to_world(degrees, point):
    affine = oblique(degrees)
    assert affine.to_voxel(affine.to_world([point])) == pytest.approx(np.array([point]), abs=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_permute_flip_and_crop_follow_the_voxels(order):
    affine, shape = oblique(20), (4, 5, 6)
    grid = np.moveaxis(np.indices(shape), 0, -1).astype(float)
    world = affine.to_world(grid.reshape(-1, 3)).reshape(*shape, 3)

    def places(changed: Affine, size) -> np.ndarray:
        return changed.to_world(np.moveaxis(np.indices(size), 0, -1).reshape(-1, 3)).reshape(*size, 3)

    moved = world.transpose(*order, 3)
    assert places(affine.permute(order), moved.shape[:3]) == pytest.approx(moved)
    assert places(affine.flip(1, 5), shape) == pytest.approx(np.flip(world, 1))
    assert places(affine.crop([1, 2, 3]), (3, 3, 3)) == pytest.approx(world[1:, 2:, 3:])


def test_rescale_keeps_the_outer_corner():
    affine = oblique(33)
    coarse = affine.rescale([2, 4, 0.5])
    assert coarse.spacing == pytest.approx((1.0, 2.8, 1.0))
    assert coarse.to_world([[-0.5, -0.5, -0.5]]) == pytest.approx(affine.to_world([[-0.5, -0.5, -0.5]]))


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (np.eye(3), "an affine has 4 x 4 numbers, not 3 x 3"),
        (np.diag([1, 1, np.nan, 1]), "the affine contains NaN, infinite or implausibly large numbers"),
        (np.diag([1, 0, 1, 1]), "the spacing is 1 x 0 x 1 mm; it must be above 0 on every axis"),
        ([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "cannot be inverted: two axes are parallel"),
        (np.diag([1, 1, 1, 2]), "the last row of the affine is not 0 0 0 1"),
    ],
)
def test_a_matrix_that_is_no_placement_is_refused(matrix, text):
    with pytest.raises(ScanError, match=text):
        Affine(matrix)


def test_an_affine_cannot_be_changed_and_compares_by_value():
    affine = oblique(5)
    with pytest.raises(ValueError, match="read-only"):
        affine.matrix[0, 0] = 1
    again = pickle.loads(pickle.dumps(affine))
    assert again == affine
    assert hash(again) == hash(affine)
    assert affine != oblique(6)
    assert affine.is_oblique
    assert affine.is_close(oblique(5.001), tolerance=0.01)
