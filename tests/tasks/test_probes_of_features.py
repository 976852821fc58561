"""Proves that the linear and the ridge probe are scikit-learn's, that probes find what is there, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dagman.errors import TaskError
from dagman.evaluation.classification_metrics import measure_auc
from dagman.evaluation.splits import plan_splits
from dagman.tasks.probes import PENALTIES, REGULARISATIONS, fit_linear_probe, fit_ridge_probe, linear_probe, neighbour_probe


def _features(items: int, size: int, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    patients = np.arange(items) * 3 // 4
    labels = patients % classes
    centres = 0.5 * random.normal(size=(classes, size))
    features = (random.normal(size=(items, size)) + centres[labels]) * random.uniform(0.1, 30, size) + 100
    features[:, -1] = 7.7  # constant
    return features, labels, patients


@pytest.mark.parametrize(("items", "size", "classes"), [(40, 200, 2), (90, 10, 2), (60, 150, 3)])
def test_the_rotated_probe_is_scikit_learns_on_standardised_features(items, size, classes):
    features, labels, patients = _features(items, size, classes)
    probe = fit_linear_probe(features, labels, patients)
    assert probe.regularisation in REGULARISATIONS
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=probe.regularisation / size, tol=1e-9, max_iter=5000))
    np.testing.assert_allclose(probe.score(features), plain.fit(features, labels).predict_proba(features), atol=2e-4)


@pytest.mark.parametrize("probe", [linear_probe, neighbour_probe])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_finds_what_is_there(probe, classes):
    features, labels, patients = _features(120, 60, classes)
    split = plan_splits(patients, labels, folds=4)[0]
    scores = probe(features[split.train], labels[split.train], patients[split.train], features[split.test], seed=1)
    assert scores.shape == (len(split.test), classes)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert np.mean(scores.argmax(axis=1) == labels[split.test]) > 0.8


@pytest.mark.parametrize("probe", [linear_probe, neighbour_probe])
def test_permuted_labels_give_chance(probe):
    # A leak of test items or labels into fitting or into choosing C would show as an AUC above chance.
    areas = []
    for seed in range(6):
        features, labels, patients = _features(120, 150, seed=seed)
        labels = np.random.default_rng(seed).permutation(labels[np.unique(patients, return_index=True)[1]])[patients]
        scores = np.zeros(120)
        for split in plan_splits(patients, labels, folds=2, seed=seed):
            found = probe(features[split.train], labels[split.train], patients[split.train], features[split.test], seed=seed)
            scores[split.test] = found[:, 1]
        areas.append(measure_auc(labels, scores))
    assert abs(np.mean(areas) - 0.5) < 0.08


def test_the_order_of_rows_changes_no_probe():
    features, labels, patients = _features(60, 30)
    order = np.random.default_rng(0).permutation(60)
    first, second = fit_linear_probe(features, labels, patients), fit_linear_probe(features[order], labels[order], patients[order])
    assert first.regularisation == second.regularisation
    np.testing.assert_allclose(first.weights, second.weights, atol=1e-4)


def _stages(seed: int, told: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two stages of 6 and 300 features, the first or the second of which knows the label."""
    random = np.random.default_rng(seed)
    labels = np.arange(80) % 2
    features = random.normal(size=(80, 306))
    known = slice(0, 6) if told == 1 else slice(6, 306)
    features[:, known] += 0.35 * random.choice([-1, 1], features[:, known].shape[1]) * np.where(labels, 1, -1)[:, None]
    return features, labels, np.arange(80)


def test_a_probe_stops_reading_where_later_stages_only_add_noise():
    features, labels, patients = _stages(0, told=1)
    probe = fit_linear_probe(features, labels, patients, stage_ends=(6, 306))
    assert probe.read == 6
    assert not probe.weights[:, 6:].any()
    alone = fit_linear_probe(features[:, :6], labels, patients)
    np.testing.assert_allclose(probe.score(features), alone.score(features[:, :6]), atol=1e-9)


def test_a_probe_reads_on_where_later_stages_know_more():
    features, labels, patients = _stages(1, told=2)
    probe = fit_linear_probe(features, labels, patients, stage_ends=(6, 306))
    assert probe.read == 306
    np.testing.assert_array_equal(probe.weights, fit_linear_probe(features, labels, patients).weights)


def test_choosing_where_to_stop_sees_no_test_item():
    areas = []
    for seed in range(6):
        features, labels, patients = _stages(seed, told=1)
        labels = np.random.default_rng(seed).permutation(labels)
        scores = np.zeros(80)
        for split in plan_splits(patients, labels, folds=2, seed=seed):
            known = (features[split.train], labels[split.train], patients[split.train])
            scores[split.test] = linear_probe(*known, features[split.test], stage_ends=(6, 306), seed=seed)[:, 1]
        areas.append(measure_auc(labels, scores))
    assert abs(np.mean(areas) - 0.5) < 0.1


@pytest.mark.parametrize("probe", [linear_probe, neighbour_probe])
def test_one_patient_a_class_is_enough(probe):
    scores = probe([[0.0, 1.0], [1.0, 0.0]], [0, 1], ["a", "b"], [[0.1, 0.9], [0.9, 0.1]])
    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_separable_features_are_fitted_without_a_warning():
    features = np.repeat([[0.0], [1.0]], 30, axis=0)
    labels = np.repeat([0, 1], 30)
    assert linear_probe(features, labels, np.arange(60), [[0.0], [1.0]]).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        (
            [[np.nan], [1.0], [np.inf]],
            [0, 1, 1],
            "the features of 2 items hold NaN or infinite numbers. Embed these items again, or drop them.",
        ),
        ([[0.0], [1.0]], [1, 1], "the training items are of one class. Give items of at least two classes."),
    ],
)
def test_what_cannot_be_probed_is_refused_in_one_line(features, labels, says):
    with pytest.raises(TaskError) as caught:
        fit_linear_probe(features, labels, range(len(labels)))
    assert str(caught.value) == says


@pytest.mark.parametrize(("items", "size"), [(40, 200), (100, 10)])
def test_the_ridge_probe_is_scikit_learns_with_the_penalty_of_the_same_folds_by_patient(items, size):
    features, _, patients = _features(items, size)
    random = np.random.default_rng(1)
    values = features[:, :5] @ random.normal(size=5) + random.normal(0, 20, items)
    probe = fit_ridge_probe(features, values, patients)
    standard = StandardScaler().fit_transform(features) / np.sqrt(size)
    folds = [(split.train, split.test) for split in plan_splits(patients, folds=5)]
    assert all(not set(patients[train]) & set(patients[test]) for train, test in folds)
    # scikit-learn averages the folds' errors; here they are summed over items: the same for folds of one size.
    theirs = RidgeCV(PENALTIES, cv=folds, scoring="neg_mean_squared_error").fit(standard, values)
    assert probe.penalty == theirs.alpha_
    np.testing.assert_allclose(probe.predict(features), theirs.predict(standard), rtol=1e-6)


def test_a_ridge_probe_reads_the_stages_that_know_the_number_and_shrinks_noise_to_the_mean():
    random = np.random.default_rng(0)
    values, patients = random.normal(size=60), np.arange(60)
    features = np.concatenate([values[:, None] + random.normal(0, 0.3, (60, 4)), random.normal(0, 1, (60, 300))], axis=1)
    probe = fit_ridge_probe(features, values, patients, stage_ends=(4, 304))
    assert probe.read == 4
    assert not probe.weights[4:].any()
    noise = fit_ridge_probe(features[:, 4:], values, patients)
    assert np.abs(noise.predict(features[:, 4:]) - values.mean()).max() < 0.1
    assert fit_ridge_probe(features, values, ["p"] * 60).penalty == 1
