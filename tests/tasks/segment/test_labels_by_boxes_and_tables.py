"""Proves that the quick ways to labels give the straightforward ones' answers: boxes of classes, tables of values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dagman.scans.affine import Affine
from dagman.scans.scan import Scan
from dagman.store.preparation import Preparation, prepare_scan, restore_to_scan_grid
from dagman.store.resampling import list_values
from dagman.tables.structures import Structure
from dagman.tasks.segment import scan_labels
from dagman.tasks.segment.cases import to_classes
from dagman.tasks.segment.scan_labels import label_on_scan_grid, label_planes

KINDS = [np.uint8, np.int16, np.int32, np.float32, np.float64]


def make_scan(spacing: tuple[float, float, float], flip: int) -> Scan:
    hu = np.random.default_rng(0).normal(0, 100, (23, 19, 17)).astype(np.float32)
    matrix = np.diag([*spacing, 1.0])
    matrix[:, flip] *= -1
    matrix[:3, 3] = (10.0, -7.5, 3.25)
    return Scan(voxels=hu, affine=Affine(matrix), modality="CT", patient="p", source="s")


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(1.0, 1.3, 2.0), (3.0, 3.0, 5.0), (0.7, 0.7, 6.5)]),
    st.integers(0, 2),
    st.integers(0, 2**16),
    st.booleans(),
    st.booleans(),
)
def test_a_class_in_its_box_is_labelled_as_on_the_whole_grid(spacing, flip, seed, blocky, by_slices):
    """Coarser and finer scans than the prepared form; classes all over, in a corner, and nowhere."""
    scan = make_scan(spacing, flip)
    prepared = prepare_scan(scan, Preparation(spacing=2.0, crop_body=False))
    rng = np.random.default_rng(seed)
    chances = rng.random((5, *prepared.shape)).astype(np.float32)
    chances[2, :, :, 3:] = 0
    chances[3] = 0
    chances[4, 2:4, 1:3, 1:2] += 1
    if blocky:
        # Ties of a class with background decide nothing.
        chances = np.round(chances * 3) / 3
    maps = np.stack([restore_to_scan_grid(one, prepared, scan) for one in chances])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_labels, "SLAB_VOXELS", 1 if by_slices else scan_labels.SLAB_VOXELS)
        np.testing.assert_array_equal(label_on_scan_grid(torch.from_numpy(chances), prepared, scan), maps.argmax(0))
    given, axis = torch.from_numpy(chances), seed % 3
    planes = given.shape[axis + 1]
    cuts = sorted({0, planes, *rng.integers(0, planes, 3).tolist()})
    slabs = ((first, given.narrow(axis + 1, first, last - first)) for first, last in itertools.pairwise(cuts))
    np.testing.assert_array_equal(label_planes(slabs, axis, prepared, scan), maps.argmax(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 7, 200), (5, 5), (0, -3, 9), (0, 2_000_000)])
def test_labels_become_classes_and_are_listed_as_by_search(kind, values):
    if np.issubdtype(kind, np.integer) and not np.array_equal(np.array(values).astype(kind), values):
        pytest.skip("not such a type's values")
    labels = np.random.default_rng(0).choice(np.array(values, dtype=kind), (6, 5, 4))
    structures = [
        Structure(name="a", values=(7, 3)),
        Structure(name="b", values=(9, 2_000_000)),
        Structure(name="c", values=(300,)),
    ]
    wanted = np.zeros(labels.shape, np.uint8)
    for code, structure in enumerate(structures, start=1):
        wanted[np.isin(labels, structure.values)] = code
    np.testing.assert_array_equal(to_classes(labels, structures), wanted)
    assert list_values(labels) == sorted({int(value) for value in labels.ravel()})
