"""Proves what is in a synthetic patient: HU of each organ, left and right, lesions where they belong, nothing but its address."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from dagman.scans.phantom import ORGANS, PhantomPatient, draw_tumour, make_patient
from dagman.scans.verdict import measure_hu

# Medians that a radiologist would accept, from no contrast medium to an arterial phase (HU).
_HU = {
    "lung_left": (-930, -760),
    "lung_right": (-930, -760),
    "heart": (25, 190),
    "aorta": (25, 230),
    "liver": (35, 130),
    "spleen": (35, 140),
    "kidney_left": (20, 200),
    "kidney_right": (20, 200),
    "spine": (60, 480),
    "trachea": (-1010, -880),
    "gallbladder": (-10, 35),
    "inferior_vena_cava": (25, 190),
    "ribs": (90, 520),
}
_KIDNEYS = (ORGANS["kidney_left"], ORGANS["kidney_right"])


@pytest.fixture(scope="module", params=[0, 1])
def patient(request) -> PhantomPatient:
    return make_patient(0, request.param, spacing=4.0)


def _center(patient: PhantomPatient, name: str) -> np.ndarray:
    return np.argwhere(patient.organs == ORGANS[name]).mean(0)


def test_every_organ_has_its_hounsfield_units(patient):
    for name, (low, high) in _HU.items():
        inside = patient.organs == ORGANS[name]
        assert inside.sum() > 20, name
        assert low < np.median(patient.hu[inside]) < high, name


def test_air_lies_around_the_body(patient):
    top = patient.hu[:, -1, :]
    assert patient.hu.dtype == np.int16
    assert -1010 < np.median(top) < -990
    assert patient.hu.min() >= -1024


def test_the_voxels_pass_as_hounsfield_units(patient):
    evidence = measure_hu(patient.hu)
    assert evidence.is_hu
    assert evidence.has_air
    assert evidence.fat_share > 0.05


def test_left_is_left_and_right_is_right(patient):
    # RAS+: the first index grows to the patient's right.
    assert _center(patient, "lung_left")[0] < _center(patient, "lung_right")[0]
    assert _center(patient, "spleen")[0] < _center(patient, "heart")[0] < _center(patient, "liver")[0]
    assert _center(patient, "spine")[1] < _center(patient, "heart")[1]
    assert _center(patient, "liver")[2] < _center(patient, "heart")[2] < _center(patient, "trachea")[2]


def test_the_right_kidney_is_lower_shorter_and_no_mirror_image_of_the_left(patient):
    # The right one mirrored, so that only what differs between them remains.
    left, right = (np.argwhere(k == v) for k, v in zip((patient.organs, patient.organs[::-1]), _KIDNEYS, strict=True))
    assert _center(patient, "kidney_right")[2] < _center(patient, "kidney_left")[2] - 2
    assert np.ptp(right[:, 2]) < np.ptp(left[:, 2])
    shapes = [set(map(tuple, kidney - np.round(kidney.mean(0)).astype(int))) for kidney in (left, right)]
    overlap = 2 * len(shapes[0] & shapes[1]) / (len(left) + len(right))
    assert overlap < 0.85


def test_lungs_hold_vessels_that_branch(patient):
    lungs = (patient.organs == ORGANS["lung_left"]) | (patient.organs == ORGANS["lung_right"])
    inner = ndimage.binary_erosion(lungs, iterations=2) & (patient.nodule_map == 0)
    assert 0.01 < np.mean(patient.hu[inner] > -600) < 0.25


def test_nodules_lie_in_the_lungs_and_their_centers_in_them(patient):
    lungs = (patient.organs == ORGANS["lung_left"]) | (patient.organs == ORGANS["lung_right"])
    assert 3 <= len(patient.nodules) <= 5
    for nodule in patient.nodules:
        mask = patient.nodule_map == nodule.value
        assert mask.any()
        assert (mask & ~lungs).sum() == 0
        assert np.median(patient.hu[mask]) > -500
        center = np.linalg.solve(patient.affine, [*nodule.center_mm, 1])[:3]
        np.testing.assert_allclose(center, np.argwhere(mask).mean(0), atol=1e-6)


def test_a_nodules_mask_has_the_volume_of_its_diameter():
    volumes, wanted = [], []
    for index in range(2):
        patient = make_patient(4, index, spacing=3.0)
        for nodule in patient.nodules:
            volumes.append(float((patient.nodule_map == nodule.value).sum()) * 27)
            wanted.append(np.pi / 6 * nodule.lesion.diameter**3)
    assert np.corrcoef(np.log(volumes), np.log(wanted))[0, 1] > 0.95
    assert 0.6 < np.sum(volumes) / np.sum(wanted) < 1.2


def test_the_tumour_lies_in_the_liver(patient):
    lesion, _ = draw_tumour(0, int(patient.name[-3:]))
    liver = ndimage.binary_dilation(patient.organs == ORGANS["liver"], iterations=1)
    volume = patient.tumour.sum() * 64
    assert (patient.tumour & liver).sum() > 0.8 * patient.tumour.sum()
    assert volume == pytest.approx(np.pi / 6 * lesion.diameter**3, rel=0.3)


def test_one_address_gives_one_patient():
    first, again, other = make_patient(3, 1, 8.0), make_patient(3, 1, 8.0), make_patient(3, 2, 8.0)
    assert np.array_equal(first.hu, again.hu)
    assert np.array_equal(first.organs, again.organs)
    assert first.nodules == again.nodules
    assert first.outcome == again.outcome
    assert first.hu.shape != other.hu.shape or not np.array_equal(first.hu, other.hu)
