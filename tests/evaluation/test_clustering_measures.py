"""Proves the measures of clusters against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from dagman.evaluation import clustering_metrics as ours

_RANDOM = np.random.default_rng(0)
_LABELS = np.repeat(np.arange(3), 20)
_POINTS = _RANDOM.normal(size=(60, 4)) + 1.5 * np.eye(3, 4)[_LABELS]


def test_distances_of_a_hand_worked_case():
    points = [[0, 0], [2, 0], [10, 0], [10, 2], [10, 4], [99, 99]]
    found = ours.measure_cluster_distances(points, [0, 0, 1, 1, 1, -1])
    assert found.intra == pytest.approx((1 + 4 / 3) / 2)
    assert found.inter == pytest.approx(np.hypot(9, 2))


@pytest.mark.parametrize(("labels", "intra"), [([0, 0], 1.0), ([-1, -1], np.nan)])
def test_fewer_than_two_clusters_have_no_distance_between(labels, intra):
    found = ours.measure_cluster_distances([[0.0], [2.0]], labels)
    assert np.isnan(found.inter)
    assert found.intra == pytest.approx(intra, nan_ok=True)
    assert np.isnan(ours.measure_silhouette([[0.0], [2.0]], labels))


def test_labels_may_be_names():
    names = np.array(["liver", "lung", "spleen"])[_LABELS]
    assert ours.measure_cluster_distances(_POINTS, names) == ours.measure_cluster_distances(_POINTS, _LABELS)
    assert ours.measure_silhouette(_POINTS, names) == pytest.approx(silhouette_score(_POINTS, _LABELS))


def test_purity_is_the_share_of_the_most_frequent():
    clusters = _RANDOM.integers(0, 5, 60)
    assert ours.measure_purity(_LABELS, clusters) == pytest.approx(contingency_matrix(_LABELS, clusters).max(axis=0).sum() / 60)
    assert ours.measure_purity(["a", "a", "b"], [7, 7, 7]) == pytest.approx(2 / 3)
    assert np.isnan(ours.measure_purity([], []))


def test_agreement_with_the_truth_itself_is_one_and_with_chance_is_nought():
    assert ours.measure_mutual_information(_LABELS, 2 - _LABELS) == pytest.approx(1)
    assert ours.measure_rand_index(_LABELS, 2 - _LABELS) == pytest.approx(1)
    assert abs(ours.measure_rand_index(_LABELS, _RANDOM.permutation(_LABELS))) < 0.1


def test_neighbour_accuracy_is_scikit_learns_leaving_one_out():
    wanted = cross_val_score(KNeighborsClassifier(1), _POINTS, _LABELS, cv=LeaveOneOut()).mean()
    assert ours.measure_neighbour_accuracy(_POINTS, _LABELS, neighbours=1) == pytest.approx(wanted)


def test_a_neighbour_of_the_same_patient_is_not_asked():
    points, labels, patients = [[0.0], [0.1], [5.0], [5.1]], [0, 0, 1, 1], ["a", "a", "b", "b"]
    assert ours.measure_neighbour_accuracy(points, labels, neighbours=1) == 1
    assert ours.measure_neighbour_accuracy(points, labels, patients=patients, neighbours=1) == 0
    assert ours.measure_neighbour_accuracy(points, labels, patients=["a"] * 4) == 0
    assert np.isnan(ours.measure_neighbour_accuracy(np.empty((0, 2)), []))


def test_among_equal_votes_the_nearer_wins():
    assert ours.measure_neighbour_accuracy([[0.0], [1.0], [3.0]], [0, 0, 1], neighbours=2) == pytest.approx(2 / 3)
