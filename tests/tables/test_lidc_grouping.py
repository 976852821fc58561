"""Proves the rule by which readers' outlines become nodules, and the filling of outlines, on cases drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon

from dagman.tables.lidc.grouping import group_annotations
from dagman.tables.lidc.nodules import measure_diameter
from dagman.tables.lidc.outlines import fill_outline

_SIDE = 100


def _group(*annotations: tuple[int, range], reach: float = 2.5) -> list[list[int]]:
    """Annotations along a line of voxels 1 mm apart."""
    readers = [reader for reader, _ in annotations]
    voxels = [np.array(line) for _, line in annotations]
    places = [np.column_stack([v, np.zeros_like(v), np.zeros_like(v)]).astype(float) for v in voxels]
    return group_annotations(readers, voxels, places, reach)


def test_nothing_marked_is_no_nodule():
    assert _group() == []


def test_overlapping_and_near_outlines_are_one_nodule_and_far_ones_are_not():
    assert _group((0, range(5)), (1, range(3, 8)), (2, range(9, 12)), (3, range(40, 45))) == [[0, 1, 2], [3]]


def test_neighbours_that_do_not_touch_are_parted_by_lowering_the_reach():
    assert _group((0, range(5)), (1, range(6)), (0, range(7, 12)), (1, range(7, 13))) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("whole", [2, 3])
def test_a_nodule_that_at_most_half_split_is_one(whole):
    split = [(reader, part) for reader in range(whole, 4) for part in (range(10), range(11, 21))]
    annotations = [(reader, range(20)) for reader in range(whole)] + split
    assert _group(*annotations) == [list(range(len(annotations)))]


def test_nodules_that_most_readers_told_apart_stay_apart():
    split = [(reader, part) for reader in (1, 2, 3) for part in (range(12), range(14, 22))]
    # The first reader's one outline overlaps the larger more.
    assert _group((0, range(20)), *split) == [[0, 1, 3, 5], [2, 4, 6]]


def test_touching_nodules_that_all_readers_told_apart_stay_apart():
    parts = [(reader, part) for reader in range(4) for part in (range(11 + reader % 2), range(11, 22))]
    assert _group(*parts) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(1, 8)), max_size=10), st.randoms(use_true_random=False)
)
def test_every_outline_is_in_one_group_whatever_their_order(drawn, random):
    annotations = [(reader, range(start, start + length)) for reader, start, length in drawn]
    groups = _group(*annotations)
    assert sorted(member for group in groups for member in group) == list(range(len(annotations)))
    order = list(range(len(annotations)))
    random.shuffle(order)
    again = _group(*(annotations[index] for index in order))
    assert {frozenset(annotations[i] for i in group) for group in groups} == {
        frozenset(annotations[order[i]] for i in group) for group in again
    }


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=8, unique=True))
def test_filling_equals_matplotlib_inside_and_leaves_out_the_line(points):
    # Sorted around their middle, the points are a simple polygon.
    corners = np.array(points)
    offset = corners - corners.mean(0)
    corners = corners[np.argsort(np.arctan2(offset[:, 1], offset[:, 0]), kind="stable")]
    filled = set(map(tuple, fill_outline(corners).tolist()))
    grid = np.argwhere(np.ones((10, 10), bool))
    polygon = Polygon(np.vstack([corners, corners[:1]]))
    # Points on the line differ between a slightly larger and a slightly smaller polygon.
    surely_in = polygon.contains_points(grid, radius=1e-6) & polygon.contains_points(grid, radius=-1e-6)
    surely_out = ~polygon.contains_points(grid, radius=1e-6) & ~polygon.contains_points(grid, radius=-1e-6)
    assert {tuple(p) for p in grid[surely_in].tolist()} >= filled
    assert not filled & {tuple(p) for p in grid[surely_out].tolist()}
    assert not filled & set(points)


def test_filling_a_rectangle_gives_its_inside():
    assert sorted(map(tuple, fill_outline(np.array([[2, 3], [6, 3], [6, 6], [2, 6]])).tolist())) == [
        (x, y) for x in (3, 4, 5) for y in (4, 5)
    ]
    assert fill_outline(np.array([[4, 4]])).size == 0


def test_the_diameter_is_the_longest_extent_within_one_slice():
    disc = np.argwhere(np.hypot(*np.mgrid[-8:9, -8:9]) <= 8)
    voxels = np.column_stack([np.vstack([disc, disc[:5]]), np.repeat([0, 9], [len(disc), 5])])
    assert measure_diameter(voxels, (0.5, 0.5, 3.0)) == pytest.approx(8.5)
    assert measure_diameter(np.array([[1, 1, 1]]), (0.5, 0.5, 3.0)) == 0.5
