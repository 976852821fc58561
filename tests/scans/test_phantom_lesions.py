"""Proves what can be learnt from the phantom: malignancy from margin and texture rather than size, outcome from texture.

Drawn without images, so that hundreds of patients cost nothing; one test renders.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.preprocessing import StandardScaler

from dagman.scans.phantom import draw_nodules, draw_outcome, draw_tumour
from dagman.scans.phantom.lesions import Lesion, render_lesion

_PATIENTS = 400


@pytest.fixture(scope="module")
def nodules() -> list[list[Lesion]]:
    return [draw_nodules(1, index) for index in range(_PATIENTS)]


def test_size_alone_tells_a_little(nodules):
    flat = [nodule for of_patient in nodules for nodule in of_patient]
    assert 0.65 < roc_auc_score([n.malignant for n in flat], [n.diameter for n in flat]) < 0.75


def test_margin_and_texture_tell_nearly_all(nodules):
    flat = [nodule for of_patient in nodules for nodule in of_patient]
    signs = StandardScaler().fit_transform([[n.spiculation, n.lobulation, n.unevenness] for n in flat])
    malignant = [n.malignant for n in flat]
    scores = cross_val_predict(LogisticRegression(), signs, malignant, cv=5, method="predict_proba")[:, 1]
    assert roc_auc_score(malignant, scores) > 0.95


def test_nearly_every_patient_has_both_classes_and_visible_nodules(nodules):
    assert np.mean([0 < sum(n.malignant for n in of_patient) < len(of_patient) for of_patient in nodules]) == 1
    diameters = [n.diameter for of_patient in nodules for n in of_patient]
    assert min(diameters) >= 6
    assert max(diameters) <= 24
    assert sum(len(of_patient) for of_patient in nodules[:24]) >= 80


def test_an_uneven_margin_and_texture_are_seen_in_the_voxels():
    def render(lesion: Lesion) -> tuple[np.ndarray, np.ndarray]:
        hu = np.full((40, 40, 40), -850, dtype=np.float32)
        center = np.array([20.0, 20.0, 20.0])
        mask = render_lesion(lesion, np.random.default_rng(0), hu, center, 1.5, background=0, grain=4.5)
        return hu, mask

    smooth = Lesion(diameter=18, lobulation=0.1, spiculation=0, unevenness=10, hu=30)
    rough = Lesion(diameter=18, lobulation=0.1, spiculation=0.9, unevenness=180, hu=30)
    (even, ball), (uneven, star) = render(smooth), render(rough)
    surfaces = [(mask & ~ndimage.binary_erosion(mask)).sum() for mask in (ball, star)]
    assert surfaces[1] > 1.2 * surfaces[0]
    cores = [ndimage.binary_erosion(mask, iterations=2) for mask in (ball, star)]
    assert uneven[cores[1]].std() > 4 * even[cores[0]].std()


def test_the_outcome_depends_on_texture_and_about_four_in_ten_are_censored():
    textures = np.array([draw_tumour(1, index)[1] for index in range(_PATIENTS)])
    outcomes = [draw_outcome(1, index, texture) for index, texture in enumerate(textures)]
    times, events = np.array([o.time for o in outcomes]), np.array([o.event for o in outcomes])
    assert 0.3 < 1 - events.mean() < 0.5
    assert times.min() >= 1
    # Harrell's C, by its definition: of two patients, the one with the earlier event has the more uneven tumour.
    earlier = (times[:, None] < times[None, :]) & (events[:, None] == 1)
    assert 0.72 < np.mean((textures[:, None] > textures[None, :])[earlier]) < 0.9
    assert roc_auc_score([o.response for o in outcomes], -textures) > 0.8


def test_a_tumours_unevenness_rises_with_its_texture():
    drawn = sorted((draw_tumour(2, index) for index in range(30)), key=lambda pair: pair[1])
    unevenness = [lesion.unevenness for lesion, _ in drawn]
    assert unevenness == sorted(unevenness)
    assert unevenness[-1] > 3 * unevenness[0]
