"""Slices of a tilted gantry on a straight grid: world positions keep their values, against a closed form; masks keep labels."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from dagman.errors import ScanError
from dagman.scans.affine import Affine
from dagman.scans.reading import read_scan

_STEP = 2.5


def tilted_affine(angle: float, *, turn: float = 0.0) -> np.ndarray:
    """Slices whose planes are tilted about x, 2.5 mm apart along their normal, shifted so that the table's axis (z) is straight."""
    a, b = np.radians([angle, turn])
    matrix = np.eye(4)
    matrix[:3, 0] = 0.8 * np.array([np.cos(b), np.sin(b), 0])
    matrix[:3, 1] = 0.9 * np.array([-np.sin(b) * np.cos(a), np.cos(b) * np.cos(a), np.sin(a)])
    matrix[:3, 2] = [0, 0, _STEP / np.cos(a)]
    matrix[:3, 3] = [-12, 30, 100]
    return matrix


def sample(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A smooth field of HU (linear, and a Gaussian ball) at every voxel's world position."""
    world = Affine(affine).to_world(np.indices(shape).reshape(3, -1).T)
    return field(world).reshape(shape)


def field(world: np.ndarray) -> np.ndarray:
    """HU at world positions."""
    ball = np.exp(-np.sum((world - [2, 48, 118]) ** 2, axis=1) / (2 * 6.0**2))
    return np.rint(-100 + 2 * world[:, 0] - 3 * (world[:, 1] - 40) + 300 * ball).astype(np.int16)


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
@pytest.mark.parametrize(("angle", "turn"), [(14.0, 0.0), (-22.0, 0.0), (5.0, 20.0)])
def test_world_positions_keep_their_values(tmp_path, write_dicom, write_nifti, kind, angle, turn):
    shape, affine = (26, 40, 16), tilted_affine(angle, turn=turn)
    voxels = sample(affine, shape)
    if kind == "dicom":
        write_dicom(tmp_path / "scan", voxels, affine)
        scan = read_scan(tmp_path / "scan")
    else:
        scan = read_scan(write_nifti(tmp_path / "scan.nii", voxels, affine), modality="CT")
    assert scan.affine.skew < 1e-3
    assert scan.spacing == pytest.approx((0.8, 0.9, _STEP), abs=1e-4)
    assert scan.notes == (f"the gantry was tilted by {abs(angle):.1f} degrees; its slices were resampled to an orthogonal grid",)
    places = np.argwhere(scan.voxels > -1024)
    # Every voxel of the slices is there still: at most half a voxel at each edge of a slice is lost.
    assert len(places) >= 0.95 * voxels.size
    found = scan.voxels[tuple(places.T)].astype(float)
    expected = field(scan.affine.to_world(places)).astype(float)
    inner = np.abs(found - expected) < 25
    assert inner.mean() > 0.93
    # The ball's middle, to a tenth of a voxel.
    light = np.clip(found - field_without_ball(scan.affine.to_world(places)), 0, None) * (expected > -400)
    light[np.linalg.norm(scan.affine.to_world(places) - [2, 48, 118], axis=1) > 14] = 0
    middle = light @ scan.affine.to_world(places) / light.sum()
    true = expected - field_without_ball(scan.affine.to_world(places))
    true[np.linalg.norm(scan.affine.to_world(places) - [2, 48, 118], axis=1) > 14] = 0
    assert np.abs(middle - true @ scan.affine.to_world(places) / true.sum()).max() < 0.08


def field_without_ball(world: np.ndarray) -> np.ndarray:
    """The linear part of the field."""
    return -100 + 2 * world[:, 0] - 3 * (world[:, 1] - 40)


def test_a_tilt_is_refused_where_it_is_asked_for(tmp_path, write_dicom, write_nifti):
    voxels = sample(tilted_affine(14.0), (12, 12, 8))
    write_dicom(tmp_path / "scan", voxels, tilted_affine(14.0))
    with pytest.raises(ScanError, match=r"the gantry is tilted by 14\.0 degrees"):
        read_scan(tmp_path / "scan", tilt="refuse")
    with pytest.raises(ScanError, match=r"14\.0 degrees from perpendicular"):
        read_scan(write_nifti(tmp_path / "a.nii", voxels, tilted_affine(14.0)), tilt="refuse")


def test_labels_on_a_sheared_grid_are_never_mixed(tmp_path, write_nifti):
    labels = np.zeros((20, 30, 10), np.uint8)
    labels[4:12, 6:15, 2:8], labels[12:16, 15:24, 2:8] = 2, 7
    path = write_nifti(tmp_path / "m.nii", labels, tilted_affine(14.0))
    placed = read_scan(path, labels=True)
    assert set(np.unique(placed.voxels)) == {0, 2, 7}
    # Slices are shifted, not stretched: each keeps its own voxels, but for those at an edge.
    assert (placed.voxels == 2).sum() == pytest.approx((labels == 2).sum(), rel=0.12)
    world = Affine(tilted_affine(14.0)).to_world(np.argwhere(labels == 2)).mean(axis=0)
    assert placed.affine.to_world(np.argwhere(placed.voxels == 2)).mean(axis=0) == pytest.approx(world, abs=0.2)


def test_a_grid_sheared_beyond_any_gantry_is_refused(tmp_path, write_nifti):
    affine = tilted_affine(60.0)
    image = nibabel.Nifti1Image(np.zeros((6, 6, 6), np.int16), affine)
    image.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(ScanError, match="from perpendicular"):
        read_scan(tmp_path / "a.nii")
