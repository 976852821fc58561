"""Clustering metrics of points (n x D) with labels (n); the label -1 marks noise, as in HDBSCAN.

Noise is excluded from distances and silhouettes. Metrics that need two groups are NaN if there are fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

Floats = NDArray[np.float64]


AGREEMENTS = ("nmi", "ari", "purity")
"""Measures of the agreement between clusters and known kinds."""


def explain_trivial(groups: ArrayLike, patients: ArrayLike, *, called: str = "kind") -> dict[str, str]:
    """Explain, by name of the measure, which measures are undefined for these groups or the same for any points.

    Args:
        groups: Group of each point (n).
        patients: Patient of each point.
        called: Word for a group in the explanations: kind or cluster.
    """
    groups, patients = np.asarray(groups), np.asarray(patients)
    values, counts = np.unique(groups, return_counts=True)
    reasons: dict[str, str] = {}
    if not any(len(np.unique(patients[groups == value])) > 1 for value in values):
        reasons["neighbour_accuracy"] = f"no {called} occurs in two patients, so no neighbour could be of the same {called}"
    if not (counts > 1).any():
        reasons |= dict.fromkeys(AGREEMENTS, f"no {called} has two structures, so any clustering would agree with the labels")
        reasons |= dict.fromkeys(("silhouette", "intra_distance", "inter_distance"), f"no {called} has two structures")
    if len(values) < 2:
        reasons |= dict.fromkeys(("silhouette", "inter_distance", *AGREEMENTS, "neighbour_accuracy"), f"there is one {called}")
    return reasons


@dataclass(frozen=True, kw_only=True)
class ClusterDistances:
    """Euclidean distances in the units of the points."""

    intra: float
    "Mean over clusters of the mean distance of their points to their centroid."
    inter: float
    "Mean distance between the centroids of two clusters."


def measure_cluster_distances(points: ArrayLike, labels: ArrayLike) -> ClusterDistances:
    """Measure intra- and inter-cluster distances as in Table 2 of the paper, which does not define them [our definitions]."""
    points, labels = _drop_noise(points, labels)
    clusters = [points[labels == label] for label in np.unique(labels)]
    if not clusters:
        return ClusterDistances(intra=float("nan"), inter=float("nan"))
    centroids = np.stack([cluster.mean(axis=0) for cluster in clusters])
    intra = [np.linalg.norm(cluster - centroid, axis=1).mean() for cluster, centroid in zip(clusters, centroids, strict=True)]
    first, second = np.triu_indices(len(clusters), 1)
    inter = np.linalg.norm(centroids[first] - centroids[second], axis=1)
    return ClusterDistances(intra=float(np.mean(intra)), inter=float(inter.mean()) if len(inter) else float("nan"))


def measure_silhouette(points: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean silhouette, from -1 to 1 (Rousseeuw 1987)."""
    points, labels = _drop_noise(points, labels)
    if not 2 <= len(np.unique(labels)) < len(labels):
        return float("nan")
    return float(silhouette_score(points, labels))


def measure_mutual_information(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Compute normalised mutual information (by the arithmetic mean), from 0 to 1; noise counts as a cluster."""
    return float(normalized_mutual_info_score(np.asarray(labels), np.asarray(clusters)))


def measure_rand_index(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Compute the adjusted Rand index: 0 by chance, 1 if both partitions are equal; noise counts as a cluster."""
    return float(adjusted_rand_score(np.asarray(labels), np.asarray(clusters)))


def measure_purity(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Compute the share of points that have the most frequent label of their cluster; noise counts as a cluster."""
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if not len(labels):
        return float("nan")
    most = [np.unique(labels[clusters == cluster], return_counts=True)[1].max() for cluster in np.unique(clusters)]
    return float(np.sum(most) / len(labels))


def measure_neighbour_accuracy(
    points: ArrayLike, labels: ArrayLike, *, patients: ArrayLike | None = None, neighbours: int = 5
) -> float:
    """Compute the share of points whose label `judge_neighbours` predicts correctly; NaN without points."""
    right = judge_neighbours(points, labels, patients=patients, neighbours=neighbours)
    return float(right.mean()) if len(right) else float("nan")


def judge_neighbours(
    points: ArrayLike, labels: ArrayLike, *, patients: ArrayLike | None = None, neighbours: int = 5
) -> NDArray[np.bool_]:
    """Test for each point whether its label is the most frequent among its nearest points of other patients (n).

    Ties go to the nearer label. Without `patients`, only the point itself is excluded. A point without neighbours counts as wrong.
    """
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels)
    patients = np.arange(len(labels)) if patients is None else np.asarray(patients)
    squares = np.sum(points**2, axis=1) if len(points) else np.zeros(0)
    right = np.zeros(len(labels), dtype=bool)
    # One row at a time, because the n x n distances of a large cohort would not fit in memory.
    for i, point in enumerate(points):
        distances = squares - 2 * points @ point
        others = np.flatnonzero(patients != patients[i])
        nearest = others[np.argsort(distances[others], kind="stable")[:neighbours]]
        values, first, counts = np.unique(labels[nearest], return_index=True, return_counts=True)
        if len(values):
            right[i] = values[np.lexsort((first, -counts))[0]] == labels[i]
    return right


def _drop_noise(points: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray]:
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels)
    clustered = labels != -1 if np.issubdtype(labels.dtype, np.number) else np.ones(len(labels), dtype=bool)
    return points[clustered], labels[clustered]
