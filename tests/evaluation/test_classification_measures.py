"""Proves the measures of classification against scikit-learn, and that they are NaN where they are undefined."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from dagman.evaluation import classification_metrics as ours
from dagman.evaluation.classification_measures import METRICS
from dagman.evaluation.measures import MEASURES

_RANDOM = np.random.default_rng(0)
_LABELS = _RANDOM.integers(0, 2, 200)
_SCORES = np.round(np.clip(0.3 * _LABELS + 0.7 * _RANDOM.random(200), 0, 1), 2)
_UNTIED = np.clip(_SCORES, 0.01, 0.99) + _RANDOM.permutation(200) * 1e-6
_GUESSES = (_SCORES > 0.5).astype(int)
_MANY = _RANDOM.integers(0, 4, 200)
_CHANCES = _RANDOM.dirichlet(np.ones(4), 200) + 0.3 * np.eye(4)[_MANY]
_CHANCES /= _CHANCES.sum(axis=1, keepdims=True)


def _measure(name: str, labels: np.ndarray, scores: np.ndarray) -> float:
    """A measure as a task computes it: of scores n R K, here of one repeat."""
    scores = np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores
    return METRICS[name].measure(labels, scores[:, None])


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (ours.measure_auc(_LABELS, _SCORES), metrics.roc_auc_score(_LABELS, _SCORES)),
        (ours.measure_balanced_accuracy(_MANY, _MANY[::-1]), metrics.balanced_accuracy_score(_MANY, _MANY[::-1])),
        (_measure("auc", _LABELS, _SCORES), metrics.roc_auc_score(_LABELS, _SCORES)),
        (_measure("auc", _MANY, _CHANCES), metrics.roc_auc_score(_MANY, _CHANCES, multi_class="ovr")),
        (_measure("accuracy", _LABELS, _SCORES), metrics.accuracy_score(_LABELS, _GUESSES)),
        (_measure("balanced_accuracy", _MANY, _CHANCES), metrics.balanced_accuracy_score(_MANY, _CHANCES.argmax(axis=1))),
        (_measure("sensitivity", _LABELS, _SCORES), metrics.recall_score(_LABELS, _GUESSES)),
        (_measure("specificity", _LABELS, _SCORES), metrics.recall_score(_LABELS, _GUESSES, pos_label=0)),
        (_measure("brier", _LABELS, _SCORES), metrics.brier_score_loss(_LABELS, _SCORES)),
        (_measure("brier", _MANY, _CHANCES), np.mean(np.sum((np.eye(4)[_MANY] - _CHANCES) ** 2, axis=1))),
    ],
)
def test_a_measure_is_scikit_learns(found, wanted):
    assert found == pytest.approx(wanted)


def test_a_measure_of_repeats_is_the_mean_over_them():
    twice = np.stack([_CHANCES, _CHANCES[::-1]], axis=1)
    for name, metric in METRICS.items():
        if not metric.binary_only:
            apart = [_measure(name, _MANY, twice[:, repeat]) for repeat in range(2)]
            assert metric.measure(_MANY, twice) == pytest.approx(np.mean(apart))


def test_every_measure_is_registered():
    assert set(METRICS) <= set(MEASURES)


def test_the_confusion_matrix_is_scikit_learns():
    assert np.array_equal(ours.count_confusions(_MANY, _MANY[::-1], 4), metrics.confusion_matrix(_MANY, _MANY[::-1]))
    assert ours.count_confusions([0], [2], 3).shape == (3, 3)


def test_the_roc_curve_is_scikit_learns():
    false_rate, true_rate, _ = metrics.roc_curve(_LABELS, _SCORES, drop_intermediate=False)
    found = ours.trace_roc(_LABELS, _SCORES)
    np.testing.assert_allclose(found[0], false_rate)
    np.testing.assert_allclose(found[1], true_rate)


def test_reliability_in_bins_of_equal_counts_is_scikit_learns():
    found = ours.bin_reliability(_LABELS, _UNTIED, bins=4, least=2)
    observed, predicted = calibration_curve(_LABELS, _UNTIED, n_bins=4, strategy="quantile")
    np.testing.assert_allclose(found.predicted, predicted)
    np.testing.assert_allclose(found.observed, observed)


@pytest.mark.parametrize(("items", "bins"), [(0, 0), (19, 0), (20, 2), (57, 5), (99, 9), (400, 10)])
def test_bins_are_fewer_where_items_are_few_and_none_where_two_cannot_be_filled(items, bins):
    probabilities = np.random.default_rng(items).random(items)
    found = ours.bin_reliability(np.arange(items) % 2, probabilities)
    assert len(found.counts) == bins
    assert found.counts.sum() == (items if bins else 0)
    assert bins == 0 or (found.counts.min() >= 10 and np.ptp(found.counts) <= 1)
    assert np.isnan(found.error) == (bins == 0)


def test_items_of_one_probability_share_a_bin():
    found = ours.bin_reliability([0] * 15 + [1] * 15, np.repeat([0.2, 0.5, 0.9], 10))
    assert found.counts.tolist() == [10, 10, 10]
    assert ours.bin_reliability([0, 1] * 15, np.full(30, 0.5)).counts.tolist() == [30]


def test_reliability_of_a_hand_worked_case():
    found = ours.bin_reliability([0, 1, 1, 1], [0.1, 0.1, 0.9, 1.0], least=2)
    np.testing.assert_allclose(found.predicted, [0.1, 0.95])
    np.testing.assert_allclose(found.observed, [0.5, 1.0])
    assert found.counts.tolist() == [2, 2]
    assert found.error == pytest.approx((2 * 0.4 + 2 * 0.05) / 4)


@pytest.mark.parametrize("labels", [[], [1, 1]])
def test_a_measure_of_one_class_is_undefined(labels):
    scores = np.linspace(0, 1, len(labels))
    assert np.isnan(ours.measure_auc(labels, scores))
    assert np.isnan(ours.trace_roc(labels, scores)[0]).all()
    assert np.isnan(METRICS["specificity"].measure(np.array(labels, dtype=int), np.zeros((len(labels), 1, 2))))
    assert np.isnan(METRICS["auc"].measure(np.array(labels, dtype=int), np.zeros((len(labels), 1, 3))))


def test_no_items_have_no_measure():
    assert np.isnan(ours.measure_balanced_accuracy([], []))
