"""How often a 95 % interval of a cross-validated AUC holds the expected AUC: models taken as given, and widened for refitting.

A logistic regression on 10 features, one of them shifted by `signal` in the third of items that is positive; 5 folds, 1 and 5
repeats. The expected AUC is the mean over the data sets. About 60 ms a data set: `python benchmarks/interval_coverage.py`.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression

from dagman.evaluation.auc import delong_covariance, estimate_auc
from dagman.evaluation.splits import plan_splits

CASES = ((43, 0.0), (120, 0.0), (43, 1.1), (43, 1.75), (120, 0.95), (120, 1.65))
REPEATS = 5


def predict(seed: int, items: int, signal: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels n, and scores and folds n R."""
    random = np.random.default_rng(seed)
    labels = random.permutation((np.arange(items) % 3 == 0).astype(int))
    features = random.normal(size=(items, 10))
    features[:, 0] += signal * labels
    scores, folds = np.zeros((items, REPEATS)), np.zeros((items, REPEATS), dtype=int)
    for split in plan_splits([f"p{i:03}" for i in range(items)], labels, repeats=REPEATS, seed=seed):
        model = LogisticRegression().fit(features[split.train], labels[split.train])
        scores[split.test, split.repeat] = model.decision_function(features[split.test])
        folds[split.test, split.repeat] = split.fold
    return labels, scores, folds


def bound(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> list[tuple[float, float, float]]:
    """The AUC with its interval, models taken as given and widened."""
    areas, covariance, _ = delong_covariance(labels, scores[..., None], folds=folds)
    value, reach = float(areas[0]), 1.959964 * float(np.sqrt(covariance[0, 0]))
    wide = estimate_auc(labels, scores, folds=folds)
    return [(value, max(value - reach, 0.0), min(value + reach, 1.0)), (wide.value, wide.low, wide.high)]


def main() -> None:
    """Print a row for each number of items, signal, number of repeats and interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=400, help="Data sets of each row.")
    sets = parser.parse_args().sets
    print("items signal expected repeats interval covers above_0.5 width")
    for items, signal in CASES:
        drawn = [predict(seed, items, signal) for seed in range(sets)]
        found = {
            repeats: np.array([bound(labels, scores[:, :repeats], folds[:, :repeats]) for labels, scores, folds in drawn])
            for repeats in (1, REPEATS)
        }
        expected = 0.5 if signal == 0 else float(found[REPEATS][:, 0, 0].mean())
        for repeats, values in found.items():
            for place, name in enumerate(("given", "widened")):
                _, low, high = values[:, place].T
                covers, above = np.mean((low <= expected) & (expected <= high)), np.mean(low > 0.5)
                print(f"{items} {signal} {expected:.3f} {repeats} {name} {covers:.3f} {above:.3f} {np.mean(high - low):.3f}")


if __name__ == "__main__":
    main()
