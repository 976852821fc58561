"""Proves that a structure is looked for in other patients alone, and that noise finds it by chance."""

from __future__ import annotations

import numpy as np
import pytest

from dagman.errors import TaskError
from dagman.tasks.retrieval import retrieve_across_patients


def test_a_signal_is_found_and_noise_is_chance():
    labels, patients = np.tile(np.arange(5), 40), np.repeat(np.arange(40), 5)
    noise = np.random.default_rng(0).normal(size=(200, 8))
    assert retrieve_across_patients(np.hstack([noise, 9.0 * np.eye(5)[labels]]), labels, patients) == 1.0
    assert retrieve_across_patients(noise, labels, patients) == pytest.approx(1 / 5, abs=0.1)


def test_the_patients_own_items_are_not_looked_at():
    # Each item is nearest to the other of its patient, which has another label; across patients the labels agree.
    features = [[1.0, 0.1], [1.0, 0.0], [-1.0, 0.1], [-1.0, 0.0]]
    assert retrieve_across_patients(features, ["liver", "heart", "liver", "heart"], ["a", "a", "b", "b"]) == 1.0


def test_what_one_patient_alone_has_is_not_asked_for():
    features = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
    assert retrieve_across_patients(features, ["liver", "liver", "heart"], ["a", "b", "b"]) == 1.0
    with pytest.raises(TaskError, match="no label occurs in two patients"):
        retrieve_across_patients(features, ["liver", "heart", "spleen"], ["a", "b", "b"])
