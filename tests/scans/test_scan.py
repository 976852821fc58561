"""A scan is the same scan whatever its axis order: reorientation is exact, and the hash sees through it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dagman.errors import ScanError
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan, hash_scan, narrow_voxels, reorient_scan

TURNS = [(order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product([False, True], repeat=3)]


def make_scan(voxels, matrix) -> Scan:
    return Scan(voxels=voxels, affine=Affine(matrix), modality="CT", patient="Jane Doe", source="jane/scan.nii")


def turn(scan: Scan, order, flips) -> Scan:
    voxels, affine = scan.voxels.transpose(order), scan.affine.permute(order)
    for axis in np.flatnonzero(flips):
        affine = affine.flip(int(axis), voxels.shape[axis])
        voxels = np.flip(voxels, axis)
    return replace(scan, voxels=voxels, affine=affine)


@pytest.mark.parametrize(("order", "flips"), TURNS)
def test_every_axis_order_and_flip_comes_back_to_ras(ct, placement, order, flips):
    scan = make_scan(ct, placement)
    back = reorient_scan(turn(scan, order, flips))
    assert np.array_equal(back.voxels, ct)
    assert back.affine.matrix == pytest.approx(placement)
    assert hash_scan(turn(scan, order, flips)) == hash_scan(scan)


def test_an_oblique_scan_keeps_its_obliqueness(ct):
    angle = np.radians(15)
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scan = make_scan(ct, matrix @ np.diag([-1, -1, 2, 1]))
    upright = reorient_scan(scan)
    assert upright.affine.axis_codes == "RAS"
    assert upright.affine.is_oblique
    assert upright.affine.to_world([[0, 0, 0]]) == pytest.approx(scan.affine.to_world([[15, 13, 0]]))
    assert upright.voxels[0, 0, 0] == scan.voxels[15, 13, 0]


def test_the_hash_sees_voxels_and_spacing_but_not_names_or_types(ct, placement):
    scan = make_scan(ct, placement)
    other = replace(scan, voxels=ct.astype(np.float32) + 0.2, patient="x", source="y", affine=scan.affine.crop([3, 3, 3]))
    assert hash_scan(other) == hash_scan(scan)
    changed = ct.copy()
    changed[8, 8, 8] += 1
    assert hash_scan(replace(scan, voxels=changed)) != hash_scan(scan)
    assert hash_scan(replace(scan, affine=scan.affine.rescale([1, 1, 1.1]))) != hash_scan(scan)


def test_scans_of_small_numbers_are_told_apart(placement):
    first, second = (np.random.default_rng(seed).uniform(0, 0.003, (16, 14, 9)).astype(np.float32) for seed in (1, 2))
    scan = make_scan(first, placement)
    assert hash_scan(replace(scan, voxels=second)) != hash_scan(scan)
    assert hash_scan(replace(scan, voxels=first.copy())) == hash_scan(scan)
    assert hash_scan(turn(scan, (2, 0, 1), (True, False, True))) == hash_scan(scan)
    assert hash_scan(replace(scan, voxels=first * np.float32(0))) == hash_scan(replace(scan, voxels=first * np.float32(-0.0)))


def test_a_spacing_on_the_edge_of_rounding_hashes_alike_as_float32(ct):
    single = float(np.float32(0.785))
    assert hash_scan(make_scan(ct, np.diag([single] * 3 + [1]))) == hash_scan(make_scan(ct, np.diag([0.785] * 3 + [1])))


def test_the_repr_names_no_one(ct, placement):
    assert repr(make_scan(ct, placement)) == "Scan(CT, 16 x 14 x 9 voxels, 0.8 x 0.9 x 2.5 mm, RAS, int16)"


def test_narrow_voxels_takes_int16_only_where_it_is_exact():
    assert narrow_voxels(np.array([-1024.0, 3000.0])).dtype == np.int16
    assert narrow_voxels(np.array([0.5, 1.0])).dtype == np.float32
    assert narrow_voxels(np.array([0, 40000], dtype=np.uint16)).dtype == np.float32
    assert narrow_voxels(np.array([0, 255], dtype=np.uint8)).dtype == np.int16


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"voxels": np.zeros((3, 3), np.int16)}, "a scan has 3 axes, not 2"),
        ({"voxels": np.zeros((3, 3, 3))}, "voxels are int16 or float32, not float64"),
        ({"modality": "PT"}, "modality is CT, MR or other, not 'PT'"),
    ],
)
def test_a_scan_checks_itself_at_birth(ct, placement, change, text):
    with pytest.raises(ScanError, match=text):
        replace(make_scan(ct, placement), **change)
