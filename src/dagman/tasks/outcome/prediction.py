"""Apply a saved survival model to new patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dagman.records.counts import count_noun
from dagman.scans.discovery import Refusal
from dagman.tables.patients import note_patients
from dagman.tasks.outcome.model import load_outcome_model
from dagman.tasks.prediction import NO_CONTRACT, Applied, Notify, PredictionSettings, Rows, list_items


def apply_outcome(folder: Path, scans: Sequence[str | Path], out: Path, settings: PredictionSettings, notify: Notify) -> Applied:
    """Apply the model in `folder`; see `dagman.tasks.prediction.Apply`."""
    model = load_outcome_model(folder, device=settings.device)
    items, refused = list_items(scans, model.clinical, settings)
    notify(count_noun(len(items), "item"))
    predicted, notes = model.predict_noted(items, dask=settings.dask)
    rows: Rows = [{"item": row["patient"], **row} for row in predicted]
    found = {row["patient"] for row in rows}
    lost = [Refusal(source=item.name, reason="cannot be used (see dagman inspect)") for item in items if item.patient not in found]
    return Applied(
        rows=rows, refused=(*refused, *lost), notes=(*note_patients(items), *(notes if model.contract else [NO_CONTRACT]))
    )
