"""Proves that resampling keeps constants, ramps and places exactly, and that what is finer than the new spacing vanishes.

The oracle is the kernel written out in float64, voxel by voxel; torch's antialias is an independent second one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dagman.errors import ScanError
from dagman.scans.affine import Affine
from dagman.store.resampling import mirror_indices, resample_labels, resample_voxels

SPACINGS = [(0.75, 0.75, 1.0), (1.0, 1.5, 5.0), (3.0, 2.0, 2.5), (2.0, 2.0, 2.0)]


def sample_directly(line: np.ndarray, position: float, step: float) -> float:
    """One output value of a line in float64: triangle of half-width max(1, step), mass 1 and centre 0, mirrored ends."""
    reach = max(1.0, step)
    taps = [j for j in range(int(position - reach) - 2, int(position + reach) + 3) if abs(j - position) < reach]
    plain = [1 - abs(j - position) / reach for j in taps]
    m0, m1, m2 = (sum(w * (j - position) ** n for w, j in zip(plain, taps, strict=True)) for n in range(3))
    spread = m0 * m2 - m1**2
    weights = [w * (m2 - m1 * (j - position)) / spread if spread > 1e-12 else 1.0 for w, j in zip(plain, taps, strict=True)]
    period = np.concatenate([line, line[::-1]])
    return float(sum(w * period[j % len(period)] for w, j in zip(weights, taps, strict=True)))


@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.3, 2.0, 2.7, 5.0, 40.0])
def test_values_are_those_of_the_kernel_written_out(spacing):
    line = np.random.default_rng(0).normal(0, 300, 23)
    found, _ = resample_voxels(line.astype(np.float32)[:, None, None], Affine(np.eye(4)), (spacing, 1.0, 1.0))
    wanted = [sample_directly(line, (i + 0.5) * spacing - 0.5, spacing) for i in range(len(found))]
    np.testing.assert_allclose(found[:, 0, 0], wanted, atol=1e-3)
    assert len(found) == max(1, int(23 / spacing + 0.5))


def test_a_smooth_image_comes_out_as_torch_antialias_gives_it():
    x, y, z = np.meshgrid(*(np.arange(48),) * 3, indexing="ij")
    image = (300 * np.sin(x / 7) * np.cos(y / 9) + 100 * np.sin(z / 8)).astype(np.float32)
    found, _ = resample_voxels(image, Affine(np.eye(4)), 2.0)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(image)[None], size=(24, 24), mode="bilinear", antialias=True)[0]
    along_x = wanted.permute(2, 1, 0)[None]
    wanted = torch.nn.functional.interpolate(along_x, size=(24, 24), mode="bilinear", antialias=True)[0].permute(2, 1, 0).numpy()
    inside = (slice(2, -2),) * 3
    np.testing.assert_allclose(found[inside], wanted[inside], atol=0.01)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", [1.1, 2.0, 3.7])
def test_a_constant_stays_and_a_ramp_stays_where_it_was(spacing, target):
    affine = Affine(np.diag([*spacing, 1.0]))
    index = np.stack(np.meshgrid(*(np.arange(30),) * 3, indexing="ij"), axis=-1)
    constant, _ = resample_voxels(np.full((30, 30, 30), -700, np.int16), affine, target)
    np.testing.assert_allclose(constant, -700, atol=1e-3)
    ramp = affine.to_world(index.reshape(-1, 3)).reshape(30, 30, 30, 3) @ [2.0, -1.0, 3.0]
    found, new = resample_voxels(ramp.astype(np.float32), affine, target)
    places = np.stack(np.meshgrid(*map(np.arange, found.shape), indexing="ij"), axis=-1)
    wanted = new.to_world(places.reshape(-1, 3)).reshape(places.shape) @ [2.0, -1.0, 3.0]
    margins = [int(np.ceil(2 * max(1, edge / target))) for edge in spacing]
    inside = tuple(slice(margin, size - margin) for margin, size in zip(margins, found.shape, strict=True))
    assert found[inside].size
    np.testing.assert_allclose(found[inside], wanted[inside], atol=2e-3)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_outer_corner_of_the_first_voxel_stays(spacing):
    turn = np.array([[0.9, -0.3, 0.1], [0.3, 0.95, 0.05], [-0.1, 0.02, 0.99]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn / np.linalg.norm(turn, axis=0) * spacing
    matrix[:3, 3] = [-120.5, 33.3, 700.1]
    _, new = resample_voxels(np.zeros((9, 8, 7), np.int16), Affine(matrix), 2.0)
    np.testing.assert_allclose(new.to_world([[-0.5] * 3]), Affine(matrix).to_world([[-0.5] * 3]), atol=1e-6)
    np.testing.assert_allclose(new.spacing, 2.0, atol=1e-9)


def test_a_pattern_finer_than_the_new_spacing_vanishes():
    sine = 500 * np.sin(2 * np.pi * np.arange(64) / 2.3)
    voxels = np.broadcast_to(sine[:, None, None], (64, 4, 4)).astype(np.float32)
    found, _ = resample_voxels(voxels, Affine(np.eye(4)), (4.0, 1.0, 1.0))
    assert np.abs(voxels[2::4]).max() > 450
    assert np.abs(found[2:-2]).max() < 30


def test_noise_falls_as_the_kernel_says_and_is_not_aliased():
    noise = np.random.default_rng(0).normal(0, 100, (64, 64, 64)).astype(np.float32)
    found, _ = resample_voxels(noise, Affine(np.eye(4)), 2.0)
    # Weights of a step of 2 are 1 3 3 1 eighths, so a line's noise falls to sqrt(20) / 8.
    assert found[2:-2, 2:-2, 2:-2].std() == pytest.approx(100 * (np.sqrt(20) / 8) ** 3, rel=0.03)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(order=st.permutations([0, 1, 2]), flips=st.lists(st.booleans(), min_size=3, max_size=3), fortran=st.booleans())
def test_the_axis_order_and_flips_of_the_memory_change_nothing(order, flips, fortran):
    voxels = np.random.default_rng(1).normal(0, 300, (8, 12, 6)).astype(np.float32)
    spacing = np.array([1.0, 0.6, 2.5])
    wanted, _ = resample_voxels(voxels, Affine(np.diag([*spacing, 1])), 2.0)
    stored = np.flip(voxels.transpose(order), [axis for axis in range(3) if flips[axis]])
    stored = stored.copy(order="F" if fortran else "C")
    seen = np.flip(stored, [axis for axis in range(3) if flips[axis]]).transpose(np.argsort(order))
    found, _ = resample_voxels(seen, Affine(np.diag([*spacing, 1])), 2.0)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 2), (3, 1, 1)])
def test_a_grid_of_one_voxel_is_resampled(shape):
    found, _ = resample_voxels(np.full(shape, 7, np.int16), Affine(np.eye(4)), 10.0)
    assert found.shape == (1, 1, 1)
    assert found[0, 0, 0] == pytest.approx(7)


def test_the_same_spacing_gives_the_same_voxels():
    voxels = np.random.default_rng(0).integers(-1000, 1000, (9, 8, 7)).astype(np.int16)
    found, affine = resample_voxels(voxels, Affine(np.eye(4)), 1.0)
    assert np.array_equal(found, voxels)
    assert affine == Affine(np.eye(4))


def test_an_absurd_spacing_is_refused_before_the_memory_is_full():
    with pytest.raises(ScanError, match=r"would have 500000 x 500000 x 5000 voxels at 2 mm\. Check the spacing in its header\."):
        resample_voxels(np.zeros((1000, 1000, 10), np.int16), Affine(np.diag([1000.0, 1000.0, 1000.0, 1])), 2.0)
    with pytest.raises(
        ScanError, match=r"its voxels are 2e\+09 times as closely spaced as requested\. Check the spacing in its header\."
    ):
        resample_voxels(np.zeros((5, 5, 5), np.int16), Affine(np.diag([1e-9, 1, 1, 1])), 2.0)


def test_mirrored_indices_repeat_both_ends():
    assert mirror_indices(np.arange(-4, 8), 3).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_labels_on_a_turned_grid_are_those_of_the_nearest_voxel(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, (6, 7, 8)).astype(np.int16)
    source, target = (np.eye(4), np.eye(4))
    target[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] * random.uniform(0.5, 2.0, 3)
    target[:3, 3] = random.uniform(-2, 6, 3)
    found = resample_labels(labels, Affine(source), Affine(target), (5, 5, 5))
    for index in np.ndindex(5, 5, 5):
        near = np.floor(target[:3, :3] @ index + target[:3, 3] + 0.5).astype(int)
        inside = (near >= 0).all() and (near < labels.shape).all()
        assert found[index] == (labels[tuple(near)] if inside else 0)


def test_labels_halfway_between_two_voxels_all_move_the_same_way():
    labels = np.arange(8, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    found = resample_labels(labels, Affine(np.eye(4)), Affine(np.eye(4)).rescale([2, 2, 2]), (4, 2, 2))
    assert found[:, 0, 0].tolist() == [1, 3, 5, 7]
