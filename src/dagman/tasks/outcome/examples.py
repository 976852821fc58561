"""Which patients of an outcome the page shows: the most certain, of the highest and lowest risk, and the least, in the middle."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from dagman.evaluation.outcome_metrics import OutOfFold
from dagman.tables.patients import PooledPatients
from dagman.tasks.inputs.examples import Chosen

EACH = 2
"""Patients shown of each kind."""


def choose_by_risk(patients: PooledPatients, predicted: OutOfFold, each: int = EACH) -> list[Chosen]:
    """The first item of each chosen patient.

    Risks of two folds have no common scale: a patient's place is the share of its fold with a lower risk, averaged over repeats.
    """
    shares = np.full(predicted.risk.shape, np.nan)
    for repeat in range(predicted.risk.shape[1]):
        for fold in np.unique(predicted.fold[:, repeat]):
            tested = predicted.fold[:, repeat] == fold
            shares[tested, repeat] = (rankdata(predicted.risk[tested, repeat]) - 0.5) / tested.sum()
    places = shares.mean(axis=1)
    item_of = dict(zip(patients.names, patients.items, strict=True))
    kinds = (
        ("most certain, highest risk", -places),
        ("least certain, risk in the middle", np.abs(places - 0.5)),
        ("most certain, lowest risk", places),
    )
    chosen: list[Chosen] = []
    for kind, order in kinds:
        taken = {one.item.patient for one in chosen}
        rows = [int(row) for row in np.argsort(order, kind="stable") if str(predicted.patients[row]) not in taken]
        for row in rows[:each]:
            outcome = f"{'event' if predicted.event[row] else 'censored'} at {predicted.time[row]:g}"
            words = f"{places[row]:.0%} of the patients of its fold have a lower risk; {outcome}"
            chosen.append(Chosen(item=item_of[str(predicted.patients[row])], kind=kind, label=outcome, words=words))
    return chosen
