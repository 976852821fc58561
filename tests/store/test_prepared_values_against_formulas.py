"""Proves against formulas, in mm of the patient, that what is prepared is where and what it was: waves, blobs, bodies, labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagman.scans.reading import read_scan
from dagman.scans.verdict import judge_scan
from dagman.store.preparation import Preparation, prepare_mask, prepare_scan, restore_to_scan_grid


def place_grid(columns: list[list[float]], spacing: list[float]) -> np.ndarray:
    """An affine whose axes have these directions and spacings (mm)."""
    matrix = np.eye(4)
    directions = np.array(columns, dtype=float).T
    matrix[:3, :3] = directions / np.linalg.norm(directions, axis=0) * spacing
    matrix[:3, 3] = [31.3, -47.7, 512.9]
    return matrix


TURN = np.linalg.qr([[0.9, -0.3, 0.2], [0.35, 0.9, 0.1], [-0.1, 0.15, 1.0]])[0].T
GRIDS = {
    "straight": place_grid([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [1.5, 1.25, 3.0]),
    "flipped": place_grid([[-1, 0, 0], [0, -1, 0], [0, 0, 1]], [1.5, 1.25, 3.0]),
    "permuted": place_grid([[0, 0, -1], [1, 0, 0], [0, -1, 0]], [1.25, 3.0, 1.5]),
    "oblique": place_grid(TURN.tolist(), [1.5, 1.25, 3.0]),
    "oblique, permuted, flipped": place_grid((TURN[[2, 0, 1]] * [[-1], [1], [-1]]).tolist(), [1.25, 3.0, 1.5]),
}


def locate_voxels(shape, affine) -> np.ndarray:
    """World places (mm) of all voxels, X Y Z 3."""
    return affine.to_world(np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)).reshape(*shape, 3)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("wavelength", "least", "most"), [(2.3, 0.0, 0.05), (2.9, 0.0, 0.16), (10.0, 0.84, 0.91), (25.0, 0.97, 1.0)]
)
def test_a_wave_is_damped_as_a_triangle_of_the_new_spacing_damps_it(scan_of, axis, wavelength, least, most):
    # 1 mm to 2 mm: waves shorter than 4 mm cannot be kept and must not come back as long ones.
    scan = scan_of(np.zeros(tuple(80 if other == axis else 6 for other in range(3)), np.int16), np.diag([1.0, 1.0, 1.0, 1.0]))
    place = locate_voxels(scan.shape, scan.affine)[..., axis]
    scan = replace(scan, voxels=np.rint(500 * np.sin(2 * np.pi * place / wavelength)).astype(np.int16))
    prepared = prepare_scan(scan, Preparation(crop_body=False))
    line = np.moveaxis(prepared.voxels, axis, 0)[2:-2, 1, 1] / 500
    phase = 2 * np.pi * np.moveaxis(locate_voxels(prepared.shape, prepared.affine)[..., axis], axis, 0)[2:-2, 1, 1] / wavelength
    gain = np.sinc(2.0 / wavelength) ** 2
    assert least <= gain <= most
    np.testing.assert_allclose(line, gain * np.sin(phase), atol=0.06)
    assert np.abs(line).max() <= most + 0.06


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("spacing", "off"), [(1.0, 0.002), (2.0, 0.002), (3.3, 0.07)])
def test_the_middle_of_a_blob_stays_where_it_is_in_the_patient(scan_of, grid, spacing, off):
    scan = scan_of(np.zeros((36, 36, 36), np.int16), GRIDS[grid])
    middle = scan.affine.to_world([[17.3, 18.6, 16.8]])[0]
    square = np.sum((locate_voxels(scan.shape, scan.affine) - middle) ** 2, axis=-1)
    scan = replace(scan, voxels=np.rint(3000 * np.exp(-square / (2 * 5.0**2)) - 1000).astype(np.int16))
    prepared = prepare_scan(scan, Preparation(spacing=spacing))
    weights = prepared.voxels + 1000.0
    found = np.tensordot(weights, locate_voxels(prepared.shape, prepared.affine), axes=3) / weights.sum()
    np.testing.assert_allclose(found, middle, rtol=0, atol=off)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_no_tissue_of_a_body_anywhere_in_the_field_is_cut_off(scan_of, seed):
    random = np.random.default_rng(seed)
    scan = scan_of(np.zeros((48, 44, 30), np.int16), np.diag([*random.choice([-5.0, 5.0], 2), 5.0, 1.0]))
    extent = np.array(scan.shape) * 5.0
    inside = np.abs(locate_voxels(scan.shape, scan.affine) - scan.affine.to_world([[0, 0, 0]])[0]) / 5.0
    # A body that may leave the field on any side, in air with noise.
    middle, radii = random.uniform(0, 1, 3) * extent / 5.0, random.uniform(40, 140, 3) / 5.0
    body = np.sum(((inside - middle) / radii) ** 2, axis=-1) < 1
    values = np.where(body, 40, -1000) + random.normal(0, 20, scan.shape)
    scan = replace(scan, voxels=np.rint(values).astype(np.int16))
    whole = prepare_scan(scan, Preparation(spacing=5.0, crop_body=False))
    cropped = prepare_scan(scan, Preparation(spacing=5.0))
    assert np.count_nonzero(cropped.voxels > -500) == np.count_nonzero(whole.voxels > -500)


@pytest.mark.parametrize("grid", GRIDS)
def test_mr_values_come_back_to_the_scan_in_its_own_unit(scan_of, grid):
    scan = scan_of(np.zeros((30, 32, 28), np.int16), GRIDS[grid], modality="MR")
    place = locate_voxels(scan.shape, scan.affine)
    wave = np.cos(place[..., 0] / 14) * np.cos(place[..., 1] / 17) + np.sin(place[..., 2] / 15)
    scan = replace(scan, voxels=(0.7 + 0.2 * wave).astype(np.float32))
    prepared = prepare_scan(scan, Preparation(spacing=1.2, crop_body=False))
    low, high = prepared.scale
    back = restore_to_scan_grid(prepared.voxels, prepared, scan) / 10000 * (high - low) + low
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(back[inner], scan.voxels[inner], atol=0.015 * (high - low))


@pytest.mark.parametrize("grid", GRIDS)
def test_labels_come_back_to_the_grid_of_any_scan_exactly_where_the_store_is_not_coarser(scan_of, grid):
    random = np.random.default_rng(4)
    scan = scan_of(random.normal(40, 10, (20, 22, 18)).round().astype(np.int16), GRIDS[grid])
    labels = replace(scan, voxels=random.integers(0, 200, scan.shape).astype(np.int16), modality="other")
    prepared = prepare_scan(scan, Preparation(spacing=1.2))
    back = restore_to_scan_grid(prepare_mask(labels, prepared), prepared, scan, "nearest")
    assert np.array_equal(back, labels.voxels)


def test_padding_does_not_reach_the_tissue_of_a_real_scan(shared_data):
    scan = read_scan(shared_data / "other-ct" / "CRLM-CT-1006.nii.gz")
    assert judge_scan(scan).accepted
    whole = prepare_scan(scan, Preparation(spacing=4.0, crop_body=False))
    cropped = prepare_scan(scan, Preparation(spacing=4.0))
    assert cropped.voxels.min() >= -1030
    assert np.median(cropped.voxels[cropped.voxels > -50]) == pytest.approx(73, abs=10)
    # The air before the belly and behind the table is off; no soft tissue is. The table itself is not body.
    assert cropped.voxels.size < 0.75 * whole.voxels.size
    assert np.count_nonzero(cropped.voxels > 0) == np.count_nonzero(whole.voxels > 0)
