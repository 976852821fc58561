"""Retrieve structures across patients by their frozen features, without any training."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dagman.errors import TaskError


def retrieve_across_patients(features: ArrayLike, labels: ArrayLike, patients: ArrayLike) -> float:
    """Compute the share of items whose nearest item of another patient has the same label.

    Items whose label occurs in only one patient are not counted.

    Args:
        features: N x C, compared by the cosine similarity of their standardised columns.
        labels: Label of each item.
        patients: Patient of each item.

    Raises:
        TaskError: No label occurs in two patients.
    """
    values, codes, people = np.asarray(features, dtype=np.float64), np.asarray(labels), np.asarray(patients, dtype=str)
    spread = values.std(axis=0)
    standard = (values - values.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    standard /= np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)
    apart = people[:, None] != people[None, :]
    asked = ((codes[:, None] == codes[None, :]) & apart).any(axis=1)
    if not asked.any():
        raise TaskError("no label occurs in two patients", do="Give a structure of at least two patients")
    nearest = np.where(apart, standard @ standard.T, -np.inf).argmax(axis=1)
    return float((codes[nearest] == codes)[asked].mean())
