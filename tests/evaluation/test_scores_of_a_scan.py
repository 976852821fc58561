"""Proves that scores measured in boxes are those of the whole grid, to rounding. Oracle: the plain computation below."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dagman.errors import TaskError
from dagman.evaluation import segmentation_metrics as metrics
from dagman.evaluation.segmentation_scores import MEASURES, parse_measures, score_scan, summarize_scores
from dagman.tables.structures import Structure

THREE = tuple(Structure(name=f"s{value}", values=(value,)) for value in (1, 2, 3))


def _score_whole_grid(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> dict[str, float]:
    """Every measure of one structure, by morphology and distance transforms of the whole grid."""
    both = int((predicted & truth).sum())
    edges = [np.pad(mask, 1) & ~ndimage.binary_erosion(np.pad(mask, 1)) for mask in (predicted, truth)]
    true_parts, lesions = ndimage.label(truth, np.ones((3, 3, 3)))
    guessed, guesses = ndimage.label(predicted, np.ones((3, 3, 3)))
    ml = np.prod(spacing) / 1000
    scores = {
        "dice": 2 * both / (predicted.sum() + truth.sum()) if predicted.any() or truth.any() else np.nan,
        "lesions": lesions,
        "found": len(set(np.unique(true_parts[predicted & truth]))),
        "false_positives": guesses - len(set(np.unique(guessed[predicted & truth]))),
        "volume_ml": predicted.sum() * ml,
        "true_volume_ml": truth.sum() * ml,
    }
    if predicted.any() and truth.any():
        away = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
        sides = [away[1][edges[0]], away[0][edges[1]]]
        near = sum(int((side <= tolerance).sum()) for side in sides)
        return scores | {"hd95_mm": max(np.percentile(s, 95) for s in sides), "nsd": near / sum(map(len, sides))}
    nothing = not (predicted.any() or truth.any())
    return scores | {"hd95_mm": np.nan if nothing else np.inf, "nsd": np.nan if nothing else 0.0}


def _draw(random: np.random.Generator, shape: tuple[int, ...], roughness: float) -> np.ndarray:
    """Classes 0 to 3 in blobs; rough ones are what an untrained network says."""
    noise = ndimage.gaussian_filter(random.normal(size=(4, *shape)), (0, *(roughness,) * 3))
    noise[0] += noise.std()
    return noise.argmax(axis=0).astype(np.uint8)


@given(
    st.integers(0, 10_000),
    st.sampled_from([(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (3.0, 1.0, 0.5), (4.625, 4.625, 3.0)]),
    st.sampled_from([0.3, 1.0, 3.0]),
    st.sampled_from([1.0, 2.0, 2.1, 5.0]),
)
@settings(max_examples=25, deadline=None)
def test_scores_in_boxes_are_those_of_the_whole_grid(seed, spacing, roughness, tolerance):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(8, 20, 3))
    predicted, truth = _draw(random, shape, roughness), _draw(random, shape, 3.0)
    # A structure that one of both lacks, and one that both do.
    predicted[predicted == 1 + seed % 3] = 0
    for row, code in zip(score_scan(predicted, truth, THREE, spacing, tolerance), (1, 2, 3), strict=True):
        expected = _score_whole_grid(predicted == code, truth == code, spacing, tolerance)
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("shape", [(40, 40, 40), (12, 12, 12)])
def test_both_ways_to_distances_agree(shape):
    random = np.random.default_rng(3)
    first, second = (metrics.find_surface(_draw(random, shape, 1.0) == 1) for _ in range(2))
    spacing = (0.7, 0.7, 2.5)
    searched = metrics._search_distances(first, second, spacing), metrics._search_distances(second, first, spacing)
    for one, other in zip(searched, metrics._transform_distances(first, second, np.array(shape), spacing), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_far_false_part_costs_no_transform_of_the_way_between(monkeypatch):
    predicted, truth = np.zeros((2, 90, 90, 90), np.uint8)
    truth[2:5, 2:5, 2:5] = 1
    predicted[2:5, 2:5, 2:5] = 1
    predicted[88, 88, 88] = 1
    monkeypatch.setattr(metrics.ndimage, "distance_transform_edt", lambda *a, **b: pytest.fail("transformed"))
    (row, *_) = score_scan(predicted, truth, THREE, (1.0, 1.0, 1.0), 2.0)
    assert row["false_positives"] == 1
    assert row["hd95_mm"] == 0
    assert row["nsd"] == pytest.approx(2 * 26 / (2 * 26 + 1))


def test_dice_alone_measures_no_surface_and_no_part(monkeypatch):
    random = np.random.default_rng(0)
    predicted, truth = _draw(random, (16, 16, 16), 2.0), _draw(random, (16, 16, 16), 2.0)
    whole = score_scan(predicted, truth, THREE, (1.0, 1.0, 1.0), 2.0)
    monkeypatch.setattr(metrics.ndimage, "label", lambda *a, **b: pytest.fail("labelled"))
    quick = score_scan(predicted, truth, THREE, (1.0, 1.0, 1.0), 2.0, measures=("dice",))
    for one, other in zip(whole, quick, strict=True):
        assert list(one) == list(other)
        assert [one[name] for name in ("dice", "volume_ml", "true_volume_ml")] == [
            other[name] for name in ("dice", "volume_ml", "true_volume_ml")
        ]
        assert np.isnan([other["hd95_mm"], other["nsd"], other["lesions"]]).all()
    frame = pd.DataFrame([{"item": "a", "patient": "a", "model": "m", "subset": "100%", **row} for row in quick])
    assert {row.name.partition(":")[0] for row in summarize_scores(frame, THREE, measures=("dice",), resamples=2)} == {"dice"}


def test_measures_are_named_and_a_slip_is_answered_with_the_nearest():
    assert parse_measures("all") == MEASURES
    assert parse_measures("hd95_mm") == ("dice", "hd95_mm")
    with pytest.raises(TaskError, match=r"--measures 'hd95' is not a measure of a segmentation. .*hd95_mm"):
        parse_measures("dice,hd95")
