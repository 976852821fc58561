"""Apply a saved classifier to new items: the probability of each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dagman.records.counts import count_noun
from dagman.scans.discovery import Refusal
from dagman.tables.patients import note_patients
from dagman.tasks.head_models import load_classifier
from dagman.tasks.prediction import NO_CONTRACT, Applied, Notify, PredictionSettings, list_items


def apply_classifier(folder: Path, scans: Sequence[str | Path], out: Path, settings: PredictionSettings, notify: Notify) -> Applied:
    """Apply the classifier in `folder`; see `dagman.tasks.prediction.Apply`."""
    classifier = load_classifier(folder, device=settings.device)
    items, refused = list_items(scans, (), settings)
    notify(count_noun(len(items), "item"))
    scored = classifier.score_items(items, dask=settings.dask)
    rows = [
        {
            "item": item.name,
            "patient": item.patient,
            "predicted": classifier.classes[int(class_probabilities.argmax())],
            **{f"score_{name}": float(chance) for name, chance in zip(classifier.classes, class_probabilities, strict=True)},
        }
        for item, class_probabilities in zip(scored.items, scored.values, strict=True)
    ]
    notes = classifier.contract.note_training_items(scored.hashes) if classifier.contract else [NO_CONTRACT]
    lost = [Refusal(source=one.item.name, reason=one.reason) for one in scored.refused]
    return Applied(rows=rows, refused=(*refused, *lost), notes=(*note_patients(items), *notes))
