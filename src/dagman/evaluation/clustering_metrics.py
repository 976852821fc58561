"""How well points of one kind lie together: points n x D, labels n; -1 marks noise (HDBSCAN's) and is left out.

Values that need two groups are NaN when there are fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

Floats = NDArray[np.float64]


AGREEMENTS = ("nmi", "ari", "purity")
"""Measures of whether clusters agree with names."""


def explain_trivial(groups: ArrayLike, patients: ArrayLike, *, called: str = "kind") -> dict[str, str]:
    """Why measures (by name) are undefined for these groups (n), or the same for any points; empty where all mean something.

    called: what a group is to readers: a kind, or a cluster.
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
    """Intra- and inter-cluster distance, as in Table 2 of the paper; it defines neither, so the definitions are ours."""
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
    """Mean silhouette, -1 to 1 (Rousseeuw 1987)."""
    points, labels = _drop_noise(points, labels)
    if not 2 <= len(np.unique(labels)) < len(labels):
        return float("nan")
    return float(silhouette_score(points, labels))


def measure_mutual_information(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Normalised mutual information of labels and clusters (arithmetic mean), 0 to 1; noise counts as a cluster."""
    return float(normalized_mutual_info_score(np.asarray(labels), np.asarray(clusters)))


def measure_rand_index(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Adjusted Rand index of labels and clusters: 0 by chance, 1 if equal; noise counts as a cluster."""
    return float(adjusted_rand_score(np.asarray(labels), np.asarray(clusters)))


def measure_purity(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of points whose label is their cluster's most frequent one; noise counts as a cluster."""
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if not len(labels):
        return float("nan")
    most = [np.unique(labels[clusters == cluster], return_counts=True)[1].max() for cluster in np.unique(clusters)]
    return float(np.sum(most) / len(labels))


def measure_neighbour_accuracy(
    points: ArrayLike, labels: ArrayLike, *, patients: ArrayLike | None = None, neighbours: int = 5
) -> float:
    """Share of points that `judge_neighbours` finds right; NaN without points."""
    right = judge_neighbours(points, labels, patients=patients, neighbours=neighbours)
    return float(right.mean()) if len(right) else float("nan")


def judge_neighbours(
    points: ArrayLike, labels: ArrayLike, *, patients: ArrayLike | None = None, neighbours: int = 5
) -> NDArray[np.bool_]:
    """Whether each point's label is the most frequent among its nearest points of other patients, ties to the nearer (n).

    Without `patients` only the point itself is left out. Points without a neighbour to ask count as wrong.
    """
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels)
    patients = np.arange(len(labels)) if patients is None else np.asarray(patients)
    squares = np.sum(points**2, axis=1) if len(points) else np.zeros(0)
    right = np.zeros(len(labels), dtype=bool)
    # A row at a time: n x n distances of a large cohort would not fit.
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
    kept = labels != -1 if np.issubdtype(labels.dtype, np.number) else np.ones(len(labels), dtype=bool)
    return points[kept], labels[kept]
