"""Proves that a crop shows what lies around its point, anti-aliased, mirrored at the ends, as the whole scan resampled shows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dagman.errors import ScanError
from dagman.store.crops import cut_crop, cut_mask_crop
from dagman.store.preparation import Preparation, prepare_mask, prepare_scan

FLIPPED = np.array([[0, -3.0, 0, 50], [0, 0, 2.0, -30], [-4.0, 0, 0, 10], [0, 0, 0, 1]])


def test_a_crop_is_a_piece_of_the_prepared_scan(scan_of, trunk):
    scan = scan_of(trunk(), FLIPPED)
    prepared = prepare_scan(scan, Preparation(crop_body=False))
    start = np.array([20, 5, 40])
    center = prepared.affine.to_world([start + 7.5])[0]
    crop = cut_crop(scan, center, 16, 2.0)
    piece = prepared.voxels[tuple(slice(first, first + 16) for first in start)]
    assert crop.shape == (16, 16, 16)
    assert crop.dtype == np.float32
    assert np.abs(crop - piece).max() <= 0.5 + 1e-2
    labels = replace(scan, voxels=(scan.voxels > -100).astype(np.int16))
    np.testing.assert_array_equal(
        cut_mask_crop(labels, center, 16, 2.0), prepare_mask(labels, prepared)[tuple(slice(f, f + 16) for f in start)]
    )


@pytest.mark.parametrize("side", [15, 16])
def test_the_point_lies_in_the_middle(scan_of, side):
    index = np.stack(np.meshgrid(*map(np.arange, (30, 40, 20)), indexing="ij"), axis=-1).reshape(-1, 3)
    scan = scan_of(np.zeros((30, 40, 20), np.int16), FLIPPED)
    world = scan.affine.to_world(index).reshape(30, 40, 20, 3)
    center = scan.affine.to_world([[14.3, 18.9, 9.6]])[0]
    for axis in range(3):
        crop = cut_crop(replace(scan, voxels=world[..., axis].astype(np.float32)), center, side, 0.8)
        assert crop.mean() == pytest.approx(center[axis], abs=1e-3)
        steps = np.diff(crop, axis=axis)
        np.testing.assert_allclose(steps, 0.8, atol=1e-3)


def test_a_crop_larger_than_the_scan_is_mirrored_again_and_again(scan_of):
    voxels = np.random.default_rng(0).integers(-500, 500, (3, 4, 2)).astype(np.int16)
    crop = cut_crop(scan_of(voxels, np.eye(4)), [1, 1.5, 0.5], 20, 1.0)
    # 20 voxels from 9.5 before the middle: index -8.5, on half voxels, so one axis at a time on odd sides.
    odd = cut_crop(scan_of(voxels, np.eye(4)), [1, 2, 1], 21, 1.0)
    expected = np.pad(voxels, [(9, 9), (8, 9), (9, 10)], mode="symmetric")
    np.testing.assert_allclose(odd, expected, atol=1e-3)
    assert crop.min() >= voxels.min()
    assert crop.max() <= voxels.max()


def test_a_mask_is_not_mirrored(scan_of):
    mask = scan_of(np.ones((3, 4, 2), np.int16), np.eye(4))
    crop = cut_mask_crop(mask, [1, 2, 1], 21, 1.0)
    assert crop.sum() == 24
    assert crop[9:12, 8:12, 9:11].all()


def test_noise_is_not_aliased_into_a_coarse_crop(scan_of):
    noise = np.random.default_rng(0).normal(0, 100, (64, 64, 64)).astype(np.float32)
    crop = cut_crop(scan_of(noise, np.eye(4)), [31.5, 31.5, 31.5], 12, 4.0)
    assert crop.std() < 12


@pytest.mark.parametrize("point", [[-0.6, 1, 1], [1, 3.6, 1], [1, 1, 2.6], [np.nan, 1, 1]])
def test_a_point_outside_the_scan_is_refused(scan_of, point):
    scan = scan_of(np.zeros((3, 4, 3), np.int16), np.eye(4))
    wanted = r"^scan\.nii\.gz: the point \(.*\) mm lies outside the scan\. Points are RAS; for LPS give --coordinates lps\.$"
    for cut in (cut_crop, cut_mask_crop):
        with pytest.raises(ScanError, match=wanted):
            cut(scan, point, 4, 1.0)


def test_a_point_on_the_outer_edge_is_inside(scan_of):
    assert cut_crop(scan_of(np.ones((3, 4, 3), np.int16), np.eye(4)), [-0.5, 3.5, 2.5], 1, 1.0) == pytest.approx(1)
