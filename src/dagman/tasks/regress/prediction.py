"""Apply a saved regression to new items: a number for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dagman.records.counts import count_noun
from dagman.scans.discovery import Refusal
from dagman.tables.patients import note_patients
from dagman.tasks.prediction import NO_CONTRACT, Applied, Notify, PredictionSettings, Rows, list_items
from dagman.tasks.regress.model import load_regression


def apply_regression(folder: Path, scans: Sequence[str | Path], out: Path, settings: PredictionSettings, notify: Notify) -> Applied:
    """Apply the regression in `folder`; see `dagman.tasks.prediction.Apply`."""
    model = load_regression(folder, device=settings.device)
    items, refused = list_items(scans, (), settings)
    notify(count_noun(len(items), "item"))
    predicted = model.predict(items, dask=settings.dask)
    rows: Rows = [
        {"item": item.name, "patient": item.patient, "predicted": float(value)}
        for item, value in zip(predicted.items, predicted.values, strict=True)
    ]
    notes = model.contract.note_training_items(predicted.hashes) if model.contract else [NO_CONTRACT]
    low, high = model.range
    if beyond := int(np.sum((predicted.values < low) | (predicted.values > high))):
        count = count_noun(beyond, f"of {len(rows)} numbers lies", f"of {len(rows)} numbers lie")
        notes.append(f"{count} outside the range the model was fitted on ({low:g} to {high:g}): these are extrapolations")
    lost = [Refusal(source=one.item.name, reason=one.reason) for one in predicted.refused]
    return Applied(rows=rows, refused=(*refused, *lost), notes=(*note_patients(items), *notes))
