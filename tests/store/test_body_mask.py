"""Proves that the body is its tissue with the lungs it encloses, without the table and the air around."""

from __future__ import annotations

import numpy as np
import pytest

from dagman.store.body import CT_LEVELS, Levels, _is_air, mask_body


@pytest.mark.parametrize("spacing", [2.0, 6.0])
def test_lungs_are_body_and_table_and_air_are_not(spacing: float):
    voxels = np.full((96, 80, 24), -1000, np.int16)
    truth = np.zeros(voxels.shape, bool)
    truth[16:80, 20:68] = True
    voxels[truth] = 40
    voxels[28:44, 30:58] = -850
    voxels[8:90, 10:11] = 100  # one voxel thin
    body = mask_body(voxels, spacing, CT_LEVELS)
    assert body[36, 44].all(), "the lung"
    assert not body[8:90, 10].any(), "the table"
    # The grid is coarse: its cells of about 6 mm may be off by one at the surface.
    assert (body != truth).mean() < 0.08


def test_where_there_is_no_body_all_is_kept():
    assert mask_body(np.full((8, 8, 8), -1000, np.int16), 2.0, CT_LEVELS).all()


def test_a_slab_is_air_where_its_median_is():
    random = np.random.default_rng(0)
    for size in (0, 1, 2, 3, 4, 7, 8):
        for _ in range(200):
            slab = random.integers(-3, 4, size).astype(np.int16)
            level = float(random.choice([-1.0, 0.0, 0.5, 1.0]))
            assert _is_air(slab, Levels(tissue=5.0, air=level)) == (size > 0 and float(np.median(slab)) < level)
