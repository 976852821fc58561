"""Proves which patients of an outcome the page shows: of high, middle and low risk, within their folds, none twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dagman.tables.items import Item
from dagman.tasks.outcome.examples import choose_by_risk


def test_patients_are_chosen_by_their_place_within_the_fold():
    names = [f"p{n}" for n in range(8)]
    items = [Item(index=n, name=f"scan {n}", scan=Path("a"), patient=name) for n, name in enumerate(names)]
    patients = SimpleNamespace(names=tuple(names), items=tuple(items))
    # Two folds of four; the second's risks are on another scale.
    risk = np.array([0.1, 0.2, 0.3, 0.4, 40.0, 10.0, 20.0, 30.0])[:, None]
    fold = np.array([0] * 4 + [1] * 4)[:, None]
    event, time = np.arange(8) % 2 == 0, np.arange(8.0)
    predicted = SimpleNamespace(patients=np.array(names), risk=risk, fold=fold, event=event, time=time)
    chosen = choose_by_risk(patients, predicted)
    assert [(one.item.patient, one.kind.partition(", ")[2]) for one in chosen] == [
        ("p3", "highest risk"),
        ("p4", "highest risk"),
        ("p1", "risk in the middle"),
        ("p2", "risk in the middle"),
        ("p0", "lowest risk"),
        ("p5", "lowest risk"),
    ]
    assert chosen[1].words == "88% of the patients of its fold have a lower risk; event at 4"
    assert chosen[0].label == "censored at 3"
    few = SimpleNamespace(**{key: value[:2] for key, value in vars(predicted).items()})
    assert [one.item.patient for one in choose_by_risk(patients, few)] == ["p1", "p0"]
