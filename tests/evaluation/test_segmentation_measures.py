"""Proves the measures of segmentation against MONAI on anisotropic grids, and by hand where nothing is to be found."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dagman.evaluation import segmentation_metrics as ours

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")


def _blob(random: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(random.normal(size=(14, 12, 10)), 2)
    # Away from the edge: MONAI's surfaces there depend on its cropping.
    return np.pad(noise > np.quantile(noise, 0.8), 2)


@given(st.integers(0, 1000), st.sampled_from([(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (3.0, 1.0, 0.5)]))
@settings(max_examples=10)
def test_dice_and_surface_distances_are_monais(seed, spacing):
    random = np.random.default_rng(seed)
    first, second = _blob(random), _blob(random)
    one, two = (torch.from_numpy(mask)[None, None].float() for mask in (first, second))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dice = monai.compute_dice(one, two).item()
        hausdorff = monai.compute_hausdorff_distance(one, two, include_background=True, percentile=95, spacing=spacing).item()
        surface = monai.compute_surface_dice(one, two, [1.5], include_background=True, spacing=spacing).item()
    assert ours.measure_dice(first, second) == pytest.approx(dice, abs=1e-6)
    assert ours.measure_hausdorff(first, second, spacing) == pytest.approx(hausdorff, abs=1e-4)
    assert ours.measure_surface_dice(first, second, spacing, tolerance=1.5) == pytest.approx(surface, abs=1e-6)


def test_distances_are_in_millimetres():
    first, second = np.zeros((2, 9, 9, 9), dtype=bool)
    first[2:5, 4, 4] = True
    second[2:5, 4, 6] = True
    assert ours.measure_hausdorff(first, second, (1, 1, 2.5)) == 5
    assert ours.measure_surface_dice(first, second, (1, 1, 2.5), tolerance=5) == 1
    assert ours.measure_surface_dice(first, second, (1, 1, 2.5), tolerance=4.9) == 0
    assert ours.measure_volume(first, (1, 2, 2.5)) == pytest.approx(0.015)


def test_a_structure_on_the_edge_of_the_array_has_a_surface():
    whole = np.ones((4, 4, 4), dtype=bool)
    assert ours.measure_hausdorff(whole, whole, (1, 1, 1)) == 0
    assert len(ours.measure_surface_distances(whole, whole, (1, 1, 1))[0]) == 4**3 - 2**3


def test_nothing_to_find_is_undefined_and_nothing_found_is_the_worst():
    empty, full = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)
    spacing = (1.0, 1.0, 1.0)
    assert np.isnan([ours.measure_dice(empty, empty), ours.measure_hausdorff(empty, empty, spacing)]).all()
    assert np.isnan(ours.measure_surface_dice(empty, empty, spacing))
    for predicted, truth in ((empty, full), (full, empty)):
        assert ours.measure_dice(predicted, truth) == 0
        assert ours.measure_hausdorff(predicted, truth, spacing) == np.inf
        assert ours.measure_surface_dice(predicted, truth, spacing) == 0


def test_lesions_are_counted_by_components():
    truth, predicted = np.zeros((2, 20, 8, 8), dtype=bool)
    truth[1:4, 2:4, 2:4] = True
    truth[4, 4, 4] = True  # touches the first by a corner: one lesion
    truth[10:13, 2:4, 2:4] = True
    predicted[3, 3, 3] = True
    predicted[7, 7, 7] = True
    assert ours.detect_lesions(predicted, truth) == ours.Detection(lesions=2, found=1, false_positives=1)
    assert ours.detect_lesions(predicted, truth, overlap=0.1) == ours.Detection(lesions=2, found=0, false_positives=1)
    assert ours.detect_lesions(~truth & False, truth) == ours.Detection(lesions=2, found=0, false_positives=0)
    assert ours.detect_lesions(predicted, truth & False) == ours.Detection(lesions=0, found=0, false_positives=2)


def test_agreement_of_a_hand_worked_case():
    found = ours.bland_altman([11, 10, 15], [10, 10, 13])
    assert found.bias == pytest.approx(1)
    assert (found.low, found.high) == pytest.approx((1 - 1.96, 1 + 1.96))
    assert np.isnan(ours.bland_altman([1], [2]).high)
    assert np.isnan(ours.bland_altman([], []).bias)
