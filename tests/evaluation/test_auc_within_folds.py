"""Proves the AUC within folds by brute force over pairs, by null data, and by what it must equal with one fold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dagman.evaluation.auc import compare_auc, count_pairs, delong_covariance, estimate_auc, prepare_auc, trace_roc_band
from dagman.evaluation.classification_measures import Scored, compare_scores, describe_curves, measure_scores
from dagman.evaluation.splits import plan_splits


def _draw(seed: int, items: int = 30, columns: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(items) % 3 == 0).astype(int)
    # Rounded, so that there are ties; some items are not tested in a column.
    scores = np.round(random.normal(size=(items, columns)) + labels[:, None], 1)
    return labels, scores, random.integers(-1, 4, size=(items, columns))


def _brute(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    right = pairs = 0.0
    for column in range(scores.shape[1]):
        for i in np.flatnonzero(labels == 1):
            for j in np.flatnonzero(labels == 0):
                if folds[i, column] == folds[j, column] >= 0:
                    ahead = (scores[i, column] > scores[j, column]) + 0.5 * (scores[i, column] == scores[j, column])
                    right += ahead * counts[i] * counts[j]
                    pairs += counts[i] * counts[j]
    return right / pairs, pairs


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_auc_counts_the_pairs_of_a_fold(seed):
    labels, scores, folds = _draw(seed)
    counts = np.random.default_rng(seed).integers(0, 3, size=len(labels))
    everyone = np.ones(len(labels))
    value, pairs = _brute(labels, scores, folds, everyone)
    area = prepare_auc(labels, scores, folds)
    assert area(everyone) == pytest.approx(value)
    assert area(counts) == pytest.approx(_brute(labels, scores, folds, counts)[0])
    assert count_pairs(labels, folds) == pairs
    assert delong_covariance(labels, scores[:, :, None], folds=folds)[0] == pytest.approx(value)


def test_in_one_fold_it_is_the_ordinary_auc_with_delongs_interval():
    labels, scores, _ = _draw(1, items=60)
    folds = np.zeros((60, 1), dtype=int)
    assert prepare_auc(labels, scores[:, :1], folds)(np.ones(60)) == pytest.approx(roc_auc_score(labels, scores[:, 0]))
    found = estimate_auc(labels, scores[:, :1], folds=folds)
    assert (found.low, found.high) == pytest.approx(
        (estimate_auc(labels, scores[:, 0]).low, estimate_auc(labels, scores[:, 0]).high)
    )


def test_the_same_scores_in_every_repeat_are_as_sure_as_in_one():
    labels, scores, _ = _draw(2, items=60)
    once, thrice = estimate_auc(labels, scores[:, 0]), estimate_auc(labels, np.repeat(scores[:, :1], 3, axis=1))
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((once.value, once.low, once.high))


def test_folds_of_other_scales_change_nothing():
    labels, scores, folds = _draw(3)
    moved = np.exp(scores) * 10.0**folds
    assert prepare_auc(labels, moved, folds)(np.ones(30)) == pytest.approx(prepare_auc(labels, scores, folds)(np.ones(30)))


def _classify_noise(seed: int, items: int = 43) -> Scored:
    """Out-of-fold probabilities of labels that the features know nothing of."""
    random = np.random.default_rng(seed)
    labels = random.permutation((np.arange(items) % 3 == 0).astype(np.int64))
    features, patients = random.normal(size=(items, 3)), np.array([f"p{i:02}" for i in range(items)])
    scores, folds = np.zeros((items, 1, 2)), np.zeros((items, 1), dtype=np.int64)
    for split in plan_splits(patients, labels, folds=5, seed=seed):
        model = LogisticRegression().fit(features[split.train], labels[split.train])
        scores[split.test, 0], folds[split.test, 0] = model.predict_proba(features[split.test]), split.fold
    return Scored(
        model="noise",
        method="linear",
        subset="100%",
        names=tuple(patients),
        labels=labels,
        patients=patients,
        scores=scores,
        folds=folds,
    )


def test_features_that_know_nothing_reach_an_auc_of_one_half_on_average():
    drawn = [_classify_noise(seed) for seed in range(300)]
    within = [prepare_auc(one.labels, one.scores[:, :, 1], one.folds)(np.ones(43)) for one in drawn]
    pooled = [roc_auc_score(one.labels, one.scores[:, 0, 1]) for one in drawn]
    error = np.std(within) / np.sqrt(len(within))
    assert abs(np.mean(within) - 0.5) < 3 * error < 0.025
    # Ranked across folds, the same scores look worse than chance.
    assert np.mean(pooled) < np.mean(within) - 2 * error


def test_delongs_interval_holds_one_half_as_often_as_it_claims_where_the_scores_are_given():
    random = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        labels, folds = random.permutation(np.arange(60) % 2), np.arange(60)[:, None] // 12
        areas, covariance, _ = delong_covariance(labels, random.normal(size=(60, 1, 1)), folds=folds)
        covered.append(abs(areas[0] - 0.5) <= 1.96 * np.sqrt(covariance[0, 0]))
    assert 0.93 <= np.mean(covered) < 1.0


def test_the_difference_of_a_table_is_that_of_its_aucs_and_the_area_under_its_curve_is_its_auc():
    first, second = _classify_noise(1), _classify_noise(1)
    second = Scored(**{**vars(second), "model": "other", "scores": second.scores[:, :, ::-1] ** 2})
    rows = [{row.name: row.interval for row in measure_scores(one, resamples=50)} for one in (first, second)]
    compared = {row.name: row.difference for row in compare_scores([first, second], resamples=50)}
    for name in ("auc", "balanced_accuracy"):
        assert compared[name].value == pytest.approx(rows[0][name].value - rows[1][name].value)
    band = trace_roc_band(first.labels, first.scores[:, :, 1], folds=first.folds, patients=first.patients, draws=20, points=20_001)
    assert np.trapezoid(band.true_positive_rate, band.false_positive_rate) == pytest.approx(rows[0]["auc"].value, abs=1e-3)
    assert set(describe_curves(first)) >= {"roc", "confusion", "reliability"}


def test_a_perfect_score_has_an_exact_interval_over_patients_and_an_auc_of_1_has_none():
    labels = np.arange(12) % 2
    scores = np.stack([1 - labels, labels], axis=1)[:, None].astype(float)
    scored = Scored(
        model="m", method="linear", subset="100%", names=tuple("abcdefghijkl"), labels=labels, patients=np.arange(12), scores=scores
    )
    found = {row.name: row.interval for row in measure_scores(scored, resamples=50)}
    exact = stats.binomtest(12, 12).proportion_ci(method="exact")
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx((exact.low, exact.high))
    assert found["accuracy"].how == "exact (Clopper-Pearson) over 12 patients"
    assert found["sensitivity"].low == pytest.approx(stats.binomtest(6, 6).proportion_ci(method="exact").low)
    assert np.isnan(found["auc"].low)
    assert found["auc"].how == ("no interval: DeLong's variance is 0; only 36 pairs of items compared in each repeat")


def test_without_a_fold_that_tests_both_classes_the_auc_is_undefined():
    labels = np.array([0, 0, 1, 1])
    folds = np.array([[0], [0], [1], [1]])
    assert np.isnan(prepare_auc(labels, labels, folds)(np.ones(4)))
    found = compare_auc(labels, labels, 1 - labels, folds=folds)
    assert np.isnan([found.value, found.p]).all()
