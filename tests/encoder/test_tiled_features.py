"""Proves that a scan read in tiles gives what one pass over the whole does, and that tiles cover every voxel."""

from __future__ import annotations

from dataclasses import replace
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
from dagman.encoder.tiling import Tiling, estimate_bytes, mark_scan, plan_pass, plan_tiles, sliding_window_inference
from dagman.model import SwinEncoder, SwinShape, swin
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


def _read(network: SwinEncoder, voxels: np.ndarray, tiling: Tiling) -> list[torch.Tensor]:
    with torch.inference_mode():
        return sliding_window_inference(lambda tiles: network(tiles / 500), voxels, tiling, fill=-1024)


def _measure_x4(network: SwinEncoder, tiling: Tiling) -> float:
    """How far x4 of tiles is from that of one pass, root mean square, as a share of its spread."""
    voxels = generator(0, "long").integers(-1000, 500, tiling.shape).astype(np.int16)
    once = plan_pass(voxels.shape, 64, network)
    assert once.starts == ((0, 0, 0),)
    *_, (tiled, whole) = zip(_read(network, voxels, tiling), _read(network, voxels, once), strict=True)
    return float((tiled - whole).square().mean().sqrt() / whole.std())


@pytest.mark.parametrize("depths", [(2, 2, 2, 2), (2, 2, 4, 2)])
def test_tiles_on_the_grid_of_attention_windows_agree_with_one_pass(depths: tuple[int, ...]):
    network = _draw_network(depths)
    shape = (448, 64, 64)
    tiling = plan_pass(shape, 64, network, memory=int(0.6 * np.prod(shape)) * estimate_bytes(network))
    assert tiling.size == (256, 64, 64)
    assert [x for x, _, _ in tiling.starts] == [0, 192]
    aligned = _measure_x4(network, tiling)
    assert aligned < 0.03
    # Half a window off, windows hold other tokens: no overlap mends that.
    assert _measure_x4(network, replace(tiling, starts=((0, 0, 0), (96, 0, 0), (192, 0, 0)))) > 2 * aligned


def _draw_network(depths: tuple[int, ...]) -> SwinEncoder:
    """Weights large enough that attention moves as much as the shortcut does: fresh ones hardly look around."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SwinEncoder(SwinShape(embed=8, depths=depths, heads=(1, 2, 2, 4))).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
    return network


@given(_SIDES, st.sampled_from([1.0, 0.5, 0.2]))
def test_a_scan_beyond_the_memory_is_cut_along_its_longest_axes(shape: tuple[int, int, int], share: float):
    network = SwinEncoder(SwinShape(embed=8, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4)))
    shape = (4 * shape[0], 4 * shape[1], 4 * shape[2])
    memory = int(share * np.prod(plan_pass(shape, 64, network).padded)) * estimate_bytes(network)
    tiling = plan_pass(shape, 64, network, memory=memory)
    assert share < 1 or len(tiling.starts) == 1
    assert np.prod(tiling.size) * estimate_bytes(network) <= memory or max(tiling.size) <= 128
    for axis in range(3):
        starts = sorted({start[axis] for start in tiling.starts})
        assert all(start % 64 == 0 for start in starts)
        assert starts[-1] + tiling.size[axis] == tiling.padded[axis] >= shape[axis]
        assert all(b - a < tiling.size[axis] for a, b in pairwise(starts))


def test_a_large_view_in_parts_is_the_view_at_once(monkeypatch: pytest.MonkeyPatch):
    network = _draw_network((2, 2, 2, 2))
    # Of 30 x 23 x 17 tokens: windows that are filled up, and odd sides to merge.
    view = torch.rand(2, 1, 60, 46, 34)
    with torch.no_grad():
        whole = network(view)
        monkeypatch.setattr(swin, "LARGE", 512)
        monkeypatch.setattr(swin, "WINDOWS_AT_ONCE", 5)
        for parts, at_once in zip(network(view), whole, strict=True):
            torch.testing.assert_close(parts, at_once, rtol=1e-5, atol=1e-5)


@given(st.tuples(*(st.integers(1, 80) for _ in range(3))), st.integers(1, 3))
def test_tiles_of_a_local_network_equal_one_pass(shape: tuple[int, int, int], batch: int):
    voxels = generator(0, "voxels", *shape).integers(-1000, 500, shape).astype(np.int16)
    tiling = plan_tiles(shape, 32)
    maps = sliding_window_inference(lambda x: [F.avg_pool3d(x, s) for s in (4, 16)], voxels, tiling, fill=-1024, batch=batch)
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
    with pytest.raises(ValueError, match="not a multiple of 32"):
        plan_tiles((40, 40, 40), 48)
