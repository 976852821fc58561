"""Proves the quick look at features: what is there is read, what is not is chance, and each seed is one value."""

from __future__ import annotations

import numpy as np
import pytest

from dagman.tasks.probing import probe_models

_PATIENTS = [f"p{number // 2}" for number in range(60)]


def _features(codes: np.ndarray, signal: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(len(codes), 12))
    noise[:, : int(codes.max()) + 1] += signal * np.eye(int(codes.max()) + 1)[codes]
    return noise


@pytest.mark.parametrize("classes", [2, 3])
def test_a_signal_is_read_and_noise_is_chance(classes):
    codes = np.arange(60) // 2 % classes
    features = {name: [_features(codes, signal, seed) for seed in (0, 1, 2)] for name, signal in (("good", 8.0), ("noise", 0.0))}
    scores = {(score.model, score.probe): score for score in probe_models(features, codes.tolist(), _PATIENTS, (0, 1, 2))}
    assert {probe for _, probe in scores} == {"linear", "k-NN", "linear, 1 a class", "linear, 5 a class"}
    assert all(len(score.values) == 3 for score in scores.values())
    assert scores["good", "linear"].mean > 0.9
    assert scores["good", "k-NN"].mean > 0.9
    chance = 1 / classes if classes > 2 else 0.5
    assert abs(scores["noise", "linear"].mean - chance) < 0.2
    assert scores["good", "linear"].mean >= scores["good", "linear, 1 a class"].mean > scores["noise", "linear, 1 a class"].mean
    assert scores["noise", "linear"].spread == pytest.approx(np.std(scores["noise", "linear"].values, ddof=1))


def test_a_count_that_a_class_does_not_have_is_left_out():
    codes = np.arange(10) % 2
    patients = [f"p{number}" for number in range(10)]
    scores = probe_models({"one": [_features(codes, 3.0, 0)]}, codes.tolist(), patients, (0,))
    assert [score.probe for score in scores] == ["linear", "k-NN", "linear, 1 a class"]
    assert np.isnan(scores[0].spread)
