"""Frozen features read by simple probes, over seeds: the quick look at what an encoder has learned (METHOD, Probes)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dagman.evaluation.classification_metrics import measure_auc, measure_balanced_accuracy
from dagman.evaluation.splits import draw_subset, find_largest_count, plan_splits
from dagman.tasks.probes import linear_probe, neighbour_probe

FOLDS = 5
SHOTS = (1, 5)
"""Labelled patients a class of the few-shot rows."""


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """One probe of one model: its measure at each seed."""

    model: str
    probe: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")


def probe_models(
    features: Mapping[str, Sequence[NDArray]], labels: Sequence[int], patients: Sequence[str], seeds: Sequence[int]
) -> list[ProbeScore]:
    """Scores of every model by k-NN and a linear probe, with all labels and few: AUC for two classes, else balanced accuracy.

    Args:
        features: For each model one N x C array a seed (the same one repeated where nothing is drawn).
        labels: Class codes of the N items.
        patients: Patients of the items; none is in two folds.
        seeds: One a repetition: folds, subsets and, where there are any, weights.
    """
    codes, people = np.asarray(labels), np.asarray(patients)
    scores = []
    for model, by_seed in features.items():
        found: dict[str, list[float]] = {}
        for values, seed in zip(by_seed, seeds, strict=True):
            for probe, value in _probe_once(values, codes, people, seed).items():
                found.setdefault(probe, []).append(value)
        scores += [ProbeScore(model=model, probe=probe, values=tuple(values)) for probe, values in found.items()]
    return scores


def _probe_once(values: NDArray, labels: NDArray, patients: NDArray, seed: int) -> dict[str, float]:
    splits = plan_splits(patients, labels, folds=FOLDS, seed=seed)
    most = find_largest_count(splits, labels, patients)
    probes: dict[str, tuple[Callable[..., NDArray], int | None]] = {"linear": (linear_probe, None), "k-NN": (neighbour_probe, None)}
    for shots in SHOTS:
        if shots <= most:
            probes[f"linear, {shots} a class"] = (linear_probe, shots)
    measured = {}
    for name, (probe, labelled) in probes.items():
        scores = np.zeros((len(labels), int(labels.max()) + 1))
        for split in splits:
            train = split.train
            if labelled is not None:
                train = draw_subset(split, labels, patients, per_class=labelled, seed=seed)
            scores[split.test] = probe(values[train], labels[train], patients[train], values[split.test], seed=seed)
        measured[name] = _measure(labels, scores)
    return measured


def _measure(labels: NDArray, scores: NDArray) -> float:
    if scores.shape[1] == 2:
        return measure_auc(labels, scores[:, 1])
    return measure_balanced_accuracy(labels, scores.argmax(axis=1))
