"""Proves that windows cover a scan, blend to what one pass gives, and hold one sum of classes and one batch of windows."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dagman.encoder.tiling import (
    FLOOR_HALF,
    Tiling,
    mirror_forward,
    plan_tiles,
    sliding_window_inference,
    stream_planes,
    weight_tile,
)


def slide_windows(forward, values: np.ndarray, side: int, *, fill: int, **options) -> Tensor:
    """As a segmentation is predicted: half-overlapping windows on any voxel, K classes on the scan's own grid."""
    tiling = plan_windows(values.shape, side, 0.5)
    (blended,) = sliding_window_inference(lambda windows: [forward(windows)], values, tiling, fill=fill, **options)
    return blended[(slice(None), *tiling.scan_box)]


def plan_windows(shape: tuple[int, ...], side: int, overlap: float) -> Tiling:
    return plan_tiles(shape, side, overlap=overlap, alignment=1, floor=FLOOR_HALF)


def say_chances(windows: Tensor) -> Tensor:
    """A network that sees single voxels: three classes that depend on the value alone."""
    return torch.stack(
        [torch.sigmoid(windows[:, 0] / 100), torch.cos(windows[:, 0] / 50) ** 2, torch.ones_like(windows[:, 0])], 1
    ).softmax(1)


def make_values(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)


@given(st.integers(32, 150), st.sampled_from([0.25, 0.5, 0.75]))
def test_windows_cover_every_voxel_and_overlap_enough(size, overlap):
    starts = sorted({x for x, _, _ in plan_windows((size, 32, 32), 32, overlap).starts})
    assert starts[0] == 0
    assert starts[-1] + 32 == size
    assert all(after - before <= 32 * (1 - overlap) for before, after in itertools.pairwise(starts))


def test_a_scan_of_one_view_is_one_pass():
    values = make_values((32, 32, 32))
    seen: list[int] = []

    def forward(windows: Tensor) -> Tensor:
        seen.append(len(windows))
        # Not voxel by voxel: a mean over the window shows that it was given whole.
        return torch.cat([windows.mean((2, 3, 4), keepdim=True).expand_as(windows), windows], 1).div(500).softmax(1)

    once = forward(torch.from_numpy(values.astype(np.float32))[None, None])[0]
    slid = slide_windows(forward, values, 32, fill=-1024)
    assert seen == [1, 1]
    torch.testing.assert_close(slid, once, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32, 32), (50, 33, 64), (20, 70, 9)])
@pytest.mark.parametrize("batch", [1, 3])
def test_many_windows_blend_to_what_each_voxel_is_given(shape, batch):
    values = make_values(shape)
    wanted = say_chances(torch.from_numpy(values.astype(np.float32))[None, None])[0]
    torch.testing.assert_close(slide_windows(say_chances, values, 32, fill=-1024, batch=batch), wanted, atol=1e-5, rtol=0)


def test_half_precision_costs_little():
    values = make_values((40, 70, 33))
    exact = slide_windows(say_chances, values, 32, fill=-1024)
    half = slide_windows(say_chances, values, 32, fill=-1024, dtype=torch.float16)
    assert half.dtype == torch.float16
    assert (half.float() - exact).abs().max() < 5e-3


def test_what_lies_beyond_a_small_scan_is_filled():
    def forward(windows: Tensor) -> Tensor:
        assert int((windows != -1024).sum()) == 10 * 12 * 14
        return torch.ones(len(windows), 2, 32, 32, 32) / 2

    assert slide_windows(forward, np.zeros((10, 12, 14), np.int16), 32, fill=-1024).shape == (2, 10, 12, 14)


def test_a_network_blind_to_mirrors_is_unchanged_by_mirroring_and_another_is_averaged():
    windows = torch.from_numpy(make_values((32, 32, 32)).astype(np.float32))[None, None]
    (averaged,) = mirror_forward(lambda tiles: [say_chances(tiles)])(windows)
    torch.testing.assert_close(averaged, say_chances(windows))

    def lean(windows: Tensor) -> list[Tensor]:
        slope = torch.linspace(0, 1, 32)[None, None, :, None, None].expand_as(windows)
        return [torch.cat([slope, 1 - slope], 1)]

    torch.testing.assert_close(mirror_forward(lean)(windows)[0], torch.full((1, 2, 32, 32, 32), 0.5))


def test_the_middle_of_a_window_counts_most():
    weights = weight_tile((32, 32, 32), FLOOR_HALF)
    assert weights.argmax() == 15 * 32 * 32 + 15 * 32 + 15
    # The corner must be a normal number in float16.
    assert weights.min() > 6.2e-5


def test_memory_is_one_sum_and_does_not_hold_all_windows():
    values = np.zeros((96, 96, 96), np.int16)
    held: list[int] = []
    alive: list[int] = []

    def forward(windows: Tensor) -> Tensor:
        alive.append(len(windows))
        held.append(tracemalloc.get_traced_memory()[0])
        return torch.ones(len(windows), 2, 32, 32, 32) / 2

    tracemalloc.start()
    slide_windows(forward, values, 32, fill=0, batch=2)
    tracemalloc.stop()
    # 125 windows of 128 KiB: what numpy holds does not grow with how many were done.
    assert len(alive) == 63
    assert max(alive) == 2
    assert held[-1] - held[1] < 2**18


@pytest.mark.parametrize("length", [48, 80])
def test_windows_blend_as_monais_do(length):
    """MONAI spreads windows at a fixed step: these lengths are whole numbers of half windows, so that both place them alike."""
    shape = (length, 32, 32)
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 9, padding=4).eval()
    values = make_values(shape)
    with torch.inference_mode():
        image = torch.from_numpy(values.astype(np.float32))[None, None]
        theirs = inferers.sliding_window_inference(image, 32, 1, network, overlap=0.5, mode="gaussian", sigma_scale=0.125)[0]
        tiling = plan_tiles(shape, 32, overlap=0.5, alignment=1)
        (ours,) = sliding_window_inference(lambda windows: [network(windows)], values, tiling, fill=0)
    # About the middle: their floor is one of the whole weight, ours one along each axis, which differ towards corners.
    difference = (ours - theirs)[:, :, 12:20, 12:20]
    assert float(difference.square().mean().sqrt()) < 2e-3 * float(theirs.std())


@pytest.mark.parametrize("shape", [(23, 40, 19), (9, 70, 33), (16, 12, 8)])
@pytest.mark.parametrize(("axis", "batch"), [(0, 1), (1, 3), (2, 3)])
def test_planes_that_come_one_after_another_are_those_of_the_whole_blend(axis, shape, batch):
    values = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    tiling = plan_tiles(shape, 16, overlap=0.5, alignment=1, floor=FLOOR_HALF)

    def forward(tiles):
        # What a tile makes of a voxel depends on all of the tile.
        return [torch.cat([tiles / 500, (tiles + tiles.mean((1, 2, 3, 4), keepdim=True)) / 700, torch.ones_like(tiles)], dim=1)]

    (blended,) = sliding_window_inference(forward, values, tiling, fill=-1024)
    wanted = blended[(slice(None), *tiling.scan_box)]
    found, after = torch.full_like(wanted, torch.nan), 0
    for first, slab in stream_planes(forward, values, tiling, axis, fill=-1024, batch=batch):
        assert first == after
        after += slab.shape[axis + 1]
        found.narrow(axis + 1, first, slab.shape[axis + 1]).copy_(slab)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
