"""Proves that a prepared scan is upright, in place, cropped of air alone, and that masks and maps come to it and back."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagman.errors import ScanError, SettingsError
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan, hash_scan
from dagman.store.preparation import Preparation, find_scale, prepare_mask, prepare_scan, restore_to_scan_grid

OBLIQUE = np.array([[-1.9, 0.3, 0.2, 40], [-0.3, -1.9, 0.4, 60], [0.25, -0.35, 2.9, -500], [0, 0, 0, 1]])


def test_a_prepared_ct_is_upright_isotropic_and_in_hu(scan_of, trunk):
    matrix = np.diag([-3.0, -2.0, 5.0, 1.0])
    prepared = prepare_scan(scan_of(trunk(), matrix), Preparation())
    assert prepared.voxels.dtype == np.int16
    assert prepared.voxels.flags.c_contiguous
    assert prepared.affine.axis_codes == "RAS"
    np.testing.assert_allclose(prepared.spacing, 2.0, atol=1e-9)
    middle = prepared.voxels[tuple(size // 2 for size in prepared.shape)]
    assert abs(middle - 40) < 15
    assert prepared.scale is None
    assert prepared.content_hash == hash_scan(scan_of(trunk(), matrix))


@given(order=st.permutations([0, 1, 2]), flips=st.lists(st.booleans(), min_size=3, max_size=3))
def test_the_axis_order_and_flips_of_a_file_change_nothing_but_rounding(scan_of, trunk, order, flips):
    scan = scan_of(trunk(shape=(20, 16, 12)), OBLIQUE)
    affine, voxels = scan.affine.permute(order), scan.voxels.transpose(order)
    for axis in np.flatnonzero(flips):
        affine, voxels = affine.flip(int(axis), voxels.shape[axis]), np.flip(voxels, axis)
    one = prepare_scan(scan, Preparation())
    other = prepare_scan(scan_of(np.ascontiguousarray(voxels), affine.matrix), Preparation())
    assert one.crop_box == other.crop_box
    assert one.content_hash == other.content_hash
    assert one.affine.is_close(other.affine, 1e-6) or "RAS" not in scan.affine.axis_codes
    assert np.abs(one.voxels.astype(int) - other.voxels).max() <= 1


def test_an_oblique_scan_keeps_its_obliqueness(scan_of, trunk):
    scan = scan_of(trunk(), OBLIQUE)
    prepared = prepare_scan(scan, Preparation(crop_body=False))
    before = scan.affine.matrix[:3, :3] / np.array(scan.spacing)
    after = prepared.affine.matrix[:3, :3] / 2.0
    np.testing.assert_allclose(np.sort(np.abs(after), axis=None), np.sort(np.abs(before), axis=None), atol=1e-9)
    assert prepared.affine.is_oblique


def test_a_bright_point_stays_at_its_place_in_the_patient(scan_of):
    voxels = np.full((30, 30, 30), -1000, np.int16)
    voxels[11:14, 19:22, 8:11] = 1000
    scan = scan_of(voxels, OBLIQUE)
    prepared = prepare_scan(scan, Preparation(spacing=1.5, crop_body=False))
    weights = prepared.voxels.astype(float) + 1000
    found = prepared.affine.to_world(
        (np.argwhere(weights > 0) * weights[weights > 0][:, None]).sum(0, keepdims=True) / weights.sum()
    )
    np.testing.assert_allclose(found, scan.affine.to_world([[12, 20, 9]]), atol=0.1)


def test_the_air_and_the_table_are_cut_off_but_no_body(scan_of, trunk):
    scan = scan_of(trunk())
    whole = prepare_scan(scan, Preparation(crop_body=False))
    prepared = prepare_scan(scan, Preparation())
    start, stop = prepared.crop_box
    assert np.array_equal(prepared.voxels, whole.voxels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))])
    assert np.count_nonzero(prepared.voxels > -100) == np.count_nonzero(whole.voxels > -100)
    assert start[0] > 0
    assert stop[0] < whole.shape[0]
    # The trunk ends 22 mm before the table begins to be within the margin.
    assert start[1] > 4
    assert (start[2], stop[2]) == (0, whole.shape[2])
    corner = prepared.affine.to_world([[0, 0, 0]])
    np.testing.assert_allclose(corner, whole.affine.to_world([start]), atol=1e-6)


def test_a_crop_of_lung_alone_loses_nothing(scan_of):
    random = np.random.default_rng(0)
    voxels = random.normal(-850, 40, (44, 44, 10))
    voxels[18:26, 18:26, 3:7] = 50
    prepared = prepare_scan(scan_of(voxels.astype(np.int16), np.diag([0.7, 0.7, 1.5, 1])), Preparation())
    assert prepared.crop_box == ((0, 0, 0), (15, 15, 8))


def test_both_legs_are_body(scan_of):
    x, y = np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 40), indexing="ij")
    legs = ((x - 0.5) / 0.25) ** 2 + (y / 0.4) ** 2 < 1
    legs |= ((x + 0.5) / 0.2) ** 2 + (y / 0.35) ** 2 < 1
    voxels = np.where(legs[..., None], 50, -1000) * np.ones((1, 1, 20))
    prepared = prepare_scan(scan_of(voxels.astype(np.int16)), Preparation())
    whole = prepare_scan(scan_of(voxels.astype(np.int16)), Preparation(crop_body=False))
    assert np.count_nonzero(prepared.voxels > 0) == np.count_nonzero(whole.voxels > 0)
    assert prepared.voxels.size < whole.voxels.size


def test_air_alone_is_left_whole(scan_of):
    prepared = prepare_scan(scan_of(np.full((20, 20, 20), -1000, np.int16)), Preparation())
    assert prepared.shape == (40, 40, 40)


def test_mr_is_scaled_by_its_percentiles_and_can_be_scaled_back(scan_of):
    random = np.random.default_rng(0)
    voxels = random.gamma(2.0, 200.0, (20, 20, 20)).astype(np.float32)
    scan = scan_of(voxels, np.diag([2.0, 2.0, 2.0, 1.0]), modality="MR")
    prepared = prepare_scan(scan, Preparation())
    low, high = prepared.scale
    assert (low, high) == tuple(np.percentile(voxels, (0.5, 99.5)))
    assert np.percentile(prepared.voxels, 0.5) == pytest.approx(0, abs=1)
    assert np.percentile(prepared.voxels, 99.5) == pytest.approx(10000, abs=2)
    np.testing.assert_allclose(prepared.voxels / 10000 * (high - low) + low, voxels, atol=(high - low) / 10000)
    bright = replace(scan, voxels=np.where(np.arange(20) == 3, 1e9, voxels).astype(np.float32))
    assert prepare_scan(bright, Preparation()).voxels.max() <= 32767


def test_a_scan_of_one_value_cannot_be_scaled(scan_of):
    with pytest.raises(ScanError, match=r"^scan\.nii\.gz: all voxels have the same value\. Exclude it\.$"):
        find_scale(scan_of(np.zeros((4, 4, 4), np.int16), modality="MR"))
    assert find_scale(scan_of(np.zeros((4, 4, 4), np.int16))) is None


@pytest.mark.parametrize("spacing", [0, -1, 0.1, 21, float("nan"), float("inf")])
def test_an_impossible_spacing_is_refused(spacing):
    with pytest.raises(SettingsError, match=r"spacing is .* mm\. Give 0\.2 to 20 mm\."):
        Preparation(spacing=spacing)


def test_equal_preparations_have_equal_digests():
    assert Preparation(spacing=2).digest == Preparation().digest
    assert Preparation(spacing=3).digest != Preparation().digest
    assert Preparation(crop_body=False).digest != Preparation().digest


def test_a_prepared_scan_shows_no_patient(scan_of, trunk):
    scan = replace(scan_of(trunk()), patient="Doe^Jane", source="doe/ct.nii.gz")
    assert "doe" not in repr(prepare_scan(scan, Preparation())).lower()


def make_mask(scan: Scan, voxels: np.ndarray) -> Scan:
    return replace(scan, voxels=voxels.astype(np.int16), modality="other")


def test_a_mask_lies_on_its_structure_after_preparation(scan_of, trunk):
    scan = scan_of(trunk(), np.diag([-3.0, 3.0, 3.0, 1.0]))
    prepared = prepare_scan(scan, Preparation())
    labels = prepare_mask(make_mask(scan, (scan.voxels > -100) * 7), prepared)
    assert labels.shape == prepared.shape
    assert set(np.unique(labels)) == {0, 7}
    tissue = prepared.voxels > -400
    assert 2 * np.sum(tissue & (labels == 7)) / (tissue.sum() + (labels == 7).sum()) > 0.95


def test_a_structure_smaller_than_a_voxel_keeps_one(scan_of, trunk):
    scan = scan_of(trunk(), np.diag([0.6, 0.6, 0.6, 1.0]))
    prepared = prepare_scan(scan, Preparation())
    small = np.zeros(scan.shape, np.int16)
    small[20, 21, 12], small[25, 20, 12] = 3, 4
    labels = prepare_mask(make_mask(scan, small), prepared)
    for label, place in ((3, (20, 21, 12)), (4, (25, 20, 12))):
        (found,) = np.argwhere(labels == label)
        distance = prepared.affine.to_world([found]) - scan.affine.to_world([place])
        assert np.abs(distance).max() <= 1.0 + 1e-6


def test_a_structure_outside_the_prepared_scan_is_absent(scan_of, trunk):
    scan = scan_of(trunk())
    far = replace(make_mask(scan, np.ones(scan.shape)), affine=scan.affine.crop((1000, 0, 0)))
    assert not prepare_mask(far, prepare_scan(scan, Preparation())).any()


@pytest.mark.parametrize(
    "matrix", [np.diag([-3.0, -2.0, 5.0, 1.0]), OBLIQUE, np.diag([1.0, 1.0, 1.0, 1.0])[[2, 0, 1, 3]] * [3, 2, 4, 1]]
)
def test_values_come_back_to_the_grid_of_the_scan(scan_of, trunk, matrix):
    scan = scan_of(trunk(shape=(24, 20, 18)), matrix)
    prepared = prepare_scan(scan, Preparation(spacing=1.0))
    places = np.stack(np.meshgrid(*map(np.arange, prepared.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    ramp = (prepared.affine.to_world(places) @ [1.0, -2.0, 0.5]).reshape(prepared.shape).astype(np.float32)
    back = restore_to_scan_grid(ramp, prepared, scan)
    own = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    wanted = (scan.affine.to_world(own) @ [1.0, -2.0, 0.5]).reshape(scan.shape)
    inside = restore_to_scan_grid(np.ones(prepared.shape, np.int16), prepared, scan, "nearest")
    assert inside.shape == back.shape == scan.shape
    assert inside.dtype == np.int16
    eroded = np.pad(inside[2:-2, 2:-2, 2:-2], 2).astype(bool)
    cut = [prepared.affine.to_voxel(scan.affine.to_world(own))[:, axis].reshape(scan.shape) for axis in range(3)]
    for axis in range(3):
        eroded &= (cut[axis] > 5) & (cut[axis] < prepared.shape[axis] - 6)
    assert eroded.any()
    np.testing.assert_allclose(back[eroded], wanted[eroded], atol=1e-2)
    assert not back[inside == 0].any()


def test_labels_come_back_as_they_went(scan_of, trunk):
    scan = scan_of(trunk(), np.diag([-4.0, 4.0, 4.0, 1.0]))
    prepared = prepare_scan(scan, Preparation())
    labels = (np.random.default_rng(0).integers(0, 4, scan.shape) * (scan.voxels > -100)).astype(np.int16)
    back = restore_to_scan_grid(prepare_mask(make_mask(scan, labels), prepared), prepared, scan, "nearest")
    assert np.array_equal(back, labels)


def test_values_on_another_grid_are_not_restored(scan_of, trunk):
    scan = scan_of(trunk())
    prepared = prepare_scan(scan, Preparation())
    with pytest.raises(ValueError, match="values have shape"):
        restore_to_scan_grid(np.zeros((2, 2, 2)), prepared, scan)
    with pytest.raises(ValueError, match="the axes of the prepared scan"):
        restore_to_scan_grid(prepared.voxels, prepared, replace(scan, affine=Affine(OBLIQUE)))


def test_no_real_nodule_crop_loses_a_voxel(shared_data):
    paths = sorted((shared_data / "lidc-nodules" / "scans").glob("*.nii.gz"))[::9]
    assert len(paths) > 20
    for path in paths:
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj).astype(np.int16)
        scan = Scan(voxels=voxels, affine=Affine(image.affine), modality="CT", patient="p", source=path.name)
        assert prepare_scan(scan, Preparation()).crop_box == ((0, 0, 0), prepare_scan(scan, Preparation(crop_body=False)).shape)
