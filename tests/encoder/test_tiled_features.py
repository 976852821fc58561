"""Proves that a scan read in tiles gives what a pass over the whole would, and that tiles cover every voxel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dagman.encoder.embedding import map_scan, pool_scan
from dagman.encoder.encoder import Encoder
from dagman.encoder.pooling import Pooling
from dagman.encoder.tiling import choose_side, map_tiles, mark_scan, plan_tiles
from dagman.randomness import generator
from dagman.scans.affine import Affine
from dagman.store.preparation import PreparedScan

_SIDES = st.tuples(*(st.integers(1, 150) for _ in range(3)))


def _prepare(voxels: np.ndarray) -> PreparedScan:
    return PreparedScan(
        voxels=voxels,
        affine=Affine(np.diag([4.0, 4.0, 4.0, 1.0])),
        modality="CT",
        crop_box=((0, 0, 0), voxels.shape),
        scale=None,
        content_hash="",
        patient="",
        source="",
    )


@given(_SIDES, st.sampled_from([32, 64, 96, 128]))
def test_tiles_cover_the_scan_on_the_grid_of_the_coarsest_stage(shape: tuple[int, int, int], side: int):
    tiling = plan_tiles(shape, side)
    for axis in range(3):
        starts = sorted({start[axis] for start in tiling.starts})
        assert all(start % 32 == 0 for start in starts)
        assert starts[0] == 0
        assert starts[-1] + side == tiling.padded[axis]
        assert all(b - a <= side - 32 or side == 32 for a, b in pairwise(starts))
        assert tiling.padded[axis] - shape[axis] < max(32, side)
    assert int(mark_scan(tiling).sum()) == np.prod(shape)


@given(_SIDES, st.sampled_from([32, 64, 96, 128, 160]))
def test_tiles_are_as_large_as_reads_the_fewest_voxels(shape: tuple[int, int, int], view: int):
    def count(side: int) -> int:
        return len(plan_tiles(shape, side).starts) * side**3

    side = choose_side(shape, view)
    assert view <= side <= max(view, 128)
    assert count(side) == min(count(other) for other in range(view, max(view, 128) + 1, 32))


def test_a_large_scan_is_read_in_large_tiles_and_a_small_one_in_one_view():
    assert choose_side((320, 320, 320), 64) == 128
    assert choose_side((60, 50, 40), 64) == 64
    assert choose_side((300, 300, 300), 192) == 192


@given(st.tuples(*(st.integers(1, 80) for _ in range(3))), st.integers(1, 3))
def test_tiles_of_a_local_network_equal_one_pass(shape: tuple[int, int, int], batch: int):
    voxels = generator(0, "voxels", *shape).integers(-1000, 500, shape).astype(np.int16)
    tiling = plan_tiles(shape, 32)
    maps = map_tiles(lambda x: [F.avg_pool3d(x, s) for s in (4, 16)], voxels, tiling, fill=-1024, batch=batch)
    whole = torch.full(tiling.padded, -1024.0)
    whole[tiling.scan_box] = torch.from_numpy(voxels).float()
    for features, stride in zip(maps, (4, 16), strict=True):
        torch.testing.assert_close(features, F.avg_pool3d(whole[None], stride), rtol=1e-5, atol=1e-2)


def test_a_scan_of_one_view_is_one_pass(encoder: Encoder):
    voxels = generator(0, "view").integers(-1000, 500, (32, 32, 32)).astype(np.int16)
    tiled = map_scan(encoder, _prepare(voxels)).maps
    once = encoder.features(torch.from_numpy(voxels)[None, None])
    for features, expected in zip(tiled, once, strict=True):
        torch.testing.assert_close(features, expected[0], rtol=1e-5, atol=1e-6)


def test_padding_is_left_out_of_pooling(encoder: Encoder):
    # 16 voxels in a view of 32: the scan meets 4 of 8 cells of x1 along each axis, the padding the others.
    voxels = generator(0, "small").integers(-200, 200, (16, 16, 16)).astype(np.int16)
    pooled = pool_scan(encoder, _prepare(voxels), Pooling(stages=(1,), pools=("mean",)))
    padded = np.full((32, 32, 32), -1024, dtype=np.int16)
    padded[8:24, 8:24, 8:24] = voxels
    (x1,) = encoder.features(torch.from_numpy(padded)[None, None], stages=(1,))
    np.testing.assert_allclose(pooled, x1[0, :, 2:6, 2:6, 2:6].mean(dim=(1, 2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_dense_features_know_where_their_cells_are(encoder: Encoder):
    dense = map_scan(encoder, _prepare(np.zeros((40, 32, 20), dtype=np.int16)), stages=(1, 3))
    assert [tuple(m.shape[1:]) for m in dense.maps] == [(16, 8, 8), (4, 2, 2)]
    # 40 voxels in 64: 12 before; a cell of x1 is 4 voxels of 4 mm wide and its middle 1.5 voxels from its first one.
    np.testing.assert_allclose(dense.affines[0].origin, [(-12 + 1.5) * 4, 1.5 * 4, (-6 + 1.5) * 4])
    np.testing.assert_allclose(dense.affines[1].spacing, [64, 64, 64])


def test_a_tile_must_fit_the_coarsest_stage():
    with pytest.raises(ValueError, match="no multiple of 32"):
        plan_tiles((40, 40, 40), 48)
