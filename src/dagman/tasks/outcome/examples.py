"""Choose the examples in an outcome's report: patients with the highest, the lowest and a medium risk."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from dagman.evaluation.outcome_metrics import OutOfFold
from dagman.tables.patients import PooledPatients
from dagman.tasks.inputs.examples import Chosen

EACH = 2
"""Number of patients of each kind."""


def choose_by_risk(patients: PooledPatients, predicted: OutOfFold, each: int = EACH) -> list[Chosen]:
    """Choose patients by risk, each represented by the first item.

    Risks of different folds have no common scale, so patients are ordered by the share of their fold with a lower risk, averaged
    over repeats.
    """
    shares = np.full(predicted.risk.shape, np.nan)
    for repeat in range(predicted.risk.shape[1]):
        for fold in np.unique(predicted.fold[:, repeat]):
            tested = predicted.fold[:, repeat] == fold
            shares[tested, repeat] = (rankdata(predicted.risk[tested, repeat]) - 0.5) / tested.sum()
    quantiles = shares.mean(axis=1)
    item_of = dict(zip(patients.names, patients.items, strict=True))
    kinds = (
        ("most certain, highest risk", -quantiles),
        ("least certain, risk in the middle", np.abs(quantiles - 0.5)),
        ("most certain, lowest risk", quantiles),
    )
    chosen: list[Chosen] = []
    for kind, order in kinds:
        taken = {one.item.patient for one in chosen}
        rows = [int(row) for row in np.argsort(order, kind="stable") if str(predicted.patients[row]) not in taken]
        for row in rows[:each]:
            outcome = f"{'event' if predicted.event[row] else 'censored'} at {predicted.time[row]:g}"
            words = f"{quantiles[row]:.0%} of the patients of its fold have a lower risk; {outcome}"
            chosen.append(Chosen(item=item_of[str(predicted.patients[row])], kind=kind, label=outcome, words=words))
    return chosen
