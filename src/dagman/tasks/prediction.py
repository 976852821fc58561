"""`dagman predict`: apply a model that a task left behind to new scans, one at a time; what cannot be used is listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dagman.encoder.items import list_scans
from dagman.errors import DagmanError, TableError, TaskError
from dagman.evaluation.segmentation_metrics import measure_volume
from dagman.records.counts import count_noun, list_some
from dagman.records.csv_file import write_frame
from dagman.records.hashes import hash_bytes
from dagman.records.journal import append_row, read_rows
from dagman.records.lock import hold_lock
from dagman.records.provenance import write_command
from dagman.records.sources import describe_names
from dagman.scans.discovery import Refusal
from dagman.scans.label_files import (
    describe_identity,
    name_outputs,
    renew_dicom_labels,
    write_dicom_labels,
    write_label_map,
)
from dagman.scans.pseudonyms import name_patient
from dagman.scans.scan import Scan, hash_scan
from dagman.tables.clinical import merge_clinical
from dagman.tables.columns import Columns
from dagman.tables.items import Item
from dagman.tables.table import read_table
from dagman.tables.table_file import is_table
from dagman.tasks.classifier import load_classifier
from dagman.tasks.outcome.model import load_outcome_model
from dagman.tasks.segment.model import SegmentationModel, load_model

Rows = list[dict[str, Any]]

_OLD = "the model was kept by an earlier dagman, without a record of what it was trained on: whether these items fit is not checked"


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """How a model is applied, and how its table is read (see `read_table`); `mirror` is for segmentation alone."""

    mirror: bool = False
    identified: bool = False
    "Whether DICOM SEGs name the patient as their sources do, not by a pseudonym."
    device: str = "auto"
    clinical: Path | None = None
    "Table with a column of patients and the model's clinical columns, where scans are given as files."
    patient: str = "patient"
    mask_label: int | None = None
    coordinates: str = "ras"
    ids: str = "checked"


@dataclass(frozen=True, kw_only=True)
class PredictionSummary:
    """What was predicted, refused, and is to be said."""

    task: str
    out: Path
    predicted: int
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    identity: str = ""
    "Whom the DICOM SEGs name, where there are any."


@dataclass(frozen=True, kw_only=True)
class _Applied:
    rows: Rows
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()


def predict_scans(
    model: str | Path,
    scans: Sequence[str | Path],
    out: str | Path,
    settings: PredictionSettings | None = None,
    *,
    on_part: Callable[[str], None] | None = None,
) -> PredictionSummary:
    """Apply a task's model to scans, and write `predictions.csv`, `rejected.csv`, and for a segmentation `predictions/`.

    model: the --out folder of a task, or its `model/`. scans: files and folders, or one table of items (CSV, Parquet), which a
    model of structures or of clinical columns needs. on_part is called with what is being done.

    Raises TaskError when the folder holds no model, or no scan can be used.
    """
    settings, out, notify = settings or PredictionSettings(), Path(out), on_part or (lambda text: None)
    folder = find_model(model)
    task, apply = next((task, apply) for file, (task, apply) in APPLIERS.items() if (folder / file).is_file())
    with hold_lock(out, TaskError):
        applied = apply(folder, scans, out, settings, notify)
        if not is_table(Path(scans[0])):
            applied = replace(applied, notes=(*applied.notes, describe_names()))
        write_frame(out / "predictions.csv", pd.DataFrame(applied.rows))
        refused = [(one.source, one.reason) for one in applied.refused]
        write_frame(out / "rejected.csv", pd.DataFrame(refused, columns=["source", "reason"]))
        count = len({row["item"] for row in applied.rows})
        outcome = {"task": task, "predicted": count, "refused": len(refused), "notes": list(applied.notes)}
        write_command(
            out,
            "predict",
            settings={"mirror": settings.mirror, "identified": settings.identified},
            inputs={"model": folder.name},
            outcome=outcome,
        )
    if not applied.rows:
        first = f"; the first: {refused[0][1]}" if refused else ""
        raise TaskError(f"none of {count_noun(len(refused), 'scan')} can be used{first}", where=out / "rejected.csv")
    identity = describe_identity(out / "predictions", identified=settings.identified)
    return PredictionSummary(task=task, out=out, predicted=count, refused=applied.refused, notes=applied.notes, identity=identity)


def find_model(path: str | Path) -> Path:
    """The folder that holds a task's model: the given one, or its `model/`; raises TaskError when neither does."""
    for folder in (Path(path), Path(path) / "model"):
        if any((folder / file).is_file() for file in APPLIERS):
            return folder
    do = "Give the --out folder of dagman classify, outcome or segment"
    raise TaskError("holds no model of a task" if Path(path).is_dir() else "is not a folder", where=path, do=do)


def _apply_segmentation(
    folder: Path, scans: Sequence[str | Path], out: Path, settings: PredictionSettings, notify: Callable[[str], None]
) -> _Applied:
    model = load_model(folder, device=settings.device)
    items, refused = _list_items(scans, (), settings)
    notes: list[str] = []
    if settings.mirror and not model.mirrored:
        notes.append("--mirror: the model was not trained on mirrored crops; structures that differ by side may be mixed up")
    journal = out / "predictions.jsonl"
    kept = {row["key"]: row["rows"] for row in read_rows(journal)}
    rows: Rows = []
    trained = 0
    for number, item in enumerate(items, start=1):
        notify(f"scan {number} of {len(items)}: {item.name}")
        try:
            scan = model.encoder.read(item.scan)
            content = hash_scan(scan)
            trained += content in model.trained_on
            place = f"{content}|{item.name}|{scan.affine.matrix.tolist()}"
            key = hash_bytes(f"1|{model.digest}|{settings.mirror}|{place}".encode())
            if key not in kept or not (out / "predictions" / f"{item.name}.nii.gz").is_file():
                kept[key] = _segment_one(model, scan, item, out, settings, notes)
                append_row(journal, {"key": key, "rows": kept[key]})
            else:
                segments = out / "predictions" / f"{item.name}.dcm"
                _note_once(notes, renew_dicom_labels(segments, model.names, item.scan, identified=settings.identified))
            rows += [{**row, "patient": item.patient} for row in kept[key]]
        except DagmanError as error:
            refused.append(Refusal.from_error(str(item.scan), error))
    if trained:
        count = count_noun(trained, "of the scans was", "of the scans were")
        notes.append(f"{count} trained on: predictions there mean little for others")
    return _Applied(rows=rows, refused=tuple(refused), notes=tuple(notes))


def _segment_one(
    model: SegmentationModel, scan: Scan, item: Item, out: Path, settings: PredictionSettings, notes: list[str]
) -> Rows:
    classes = model.label_scan(scan, mirror=settings.mirror)
    values = model.to_values(classes)
    write_label_map(out / "predictions" / f"{item.name}.nii.gz", values, scan)
    place = out / "predictions" / f"{item.name}.dcm"
    _note_once(notes, write_dicom_labels(place, values, model.names, item.scan, identified=settings.identified))
    return [
        {
            "item": item.name,
            "patient": item.patient,
            "structure": structure.name,
            "value": structure.values[0],
            "volume_ml": measure_volume(classes == code, scan.spacing),
        }
        for code, structure in enumerate(model.structures, start=1)
    ]


def _note_once(notes: list[str], note: str) -> None:
    if note and note not in notes:
        notes.append(note)


def _apply_classifier(
    folder: Path, scans: Sequence[str | Path], out: Path, settings: PredictionSettings, notify: Callable[[str], None]
) -> _Applied:
    classifier = load_classifier(folder, device=settings.device)
    items, refused = _list_items(scans, (), settings)
    notify(count_noun(len(items), "item"))
    scored = classifier.score_items(items)
    rows = [
        {
            "item": item.name,
            "patient": item.patient,
            "predicted": classifier.classes[int(class_probabilities.argmax())],
            **{f"score_{name}": float(chance) for name, chance in zip(classifier.classes, class_probabilities, strict=True)},
        }
        for item, class_probabilities in zip(scored.items, scored.scores, strict=True)
    ]
    notes = classifier.contract.note_training_items(scored.hashes) if classifier.contract else [_OLD]
    lost = [Refusal(source=one.item.name, reason=one.reason) for one in scored.refused]
    return _Applied(rows=rows, refused=(*refused, *lost), notes=tuple(notes))


def _apply_outcome(
    folder: Path, scans: Sequence[str | Path], out: Path, settings: PredictionSettings, notify: Callable[[str], None]
) -> _Applied:
    model = load_outcome_model(folder, device=settings.device)
    items, refused = _list_items(scans, model.clinical, settings)
    notify(count_noun(len(items), "item"))
    predicted, notes = model.predict_noted(items)
    rows: Rows = [{"item": row["patient"], **row} for row in predicted]
    found = {row["patient"] for row in rows}
    lost = [Refusal(source=item.name, reason="cannot be used (see dagman inspect)") for item in items if item.patient not in found]
    return _Applied(rows=rows, refused=(*refused, *lost), notes=tuple(notes if model.contract else [_OLD]))


APPLIERS: dict[str, tuple[str, Callable[..., _Applied]]] = {
    "segmentation.json": ("segment", _apply_segmentation),
    "classifier.json": ("classify", _apply_classifier),
    "outcome.json": ("outcome", _apply_outcome),
}
"""What applies a model, by the file that its folder holds."""


def _list_items(
    scans: Sequence[str | Path], clinical: Sequence[str], settings: PredictionSettings
) -> tuple[list[Item], list[Refusal]]:
    """Items of one table, or one for each series found; names are unique and can be file names."""
    first = Path(scans[0])
    if len(scans) == 1 and is_table(first):
        if settings.clinical is not None:
            raise TaskError("--clinical was given beside a table of items", where=first, do="Write its columns into the table")
        read = read_table(
            first,
            clinical=clinical,
            patient=settings.patient,
            mask_label=settings.mask_label,
            coordinates=settings.coordinates,
            ids=settings.ids,
        )
        return list(read.items), []
    items, refused = list_scans(list(scans))
    names = name_outputs([item.name for item in items])
    items = [replace(item, name=name) for item, name in zip(items, names, strict=True)]
    if settings.clinical is not None:
        if not clinical:
            raise TaskError("--clinical was given, and the model uses no clinical columns", do="Leave it out")
        items = _join_clinical(items, settings.clinical, clinical, settings.patient)
    return items, refused


def _join_clinical(items: Sequence[Item], path: Path, names: Sequence[str], patient: str) -> list[Item]:
    """Items with the clinical values of their patients; raises TableError for a patient who is not in the table."""
    columns = Columns(path)
    patients = columns.text(patient)
    read = {name: columns.numbers_or_words(name) for name in names}
    rows: dict[str, list[dict[str, float | str | None]]] = {}
    wanted = {item.patient for item in items}
    for row, name in enumerate(patients):
        if name is not None:
            # The user's table knows the patients by their own names; who has the key can join the two.
            name = name if name in wanted else name_patient(name)
            rows.setdefault(name, []).append({column: values[row] for column, values in read.items()})
    absent = sorted(wanted - set(rows))
    if absent:
        do = f"Write a row for each in the column '{patient}', by PatientID, file name, or pseudonym (dagman inspect shows it)"
        raise TableError(f"has no patient {list_some(absent)}", where=path, do=do)
    merged = {name: merge_clinical(of) for name, of in rows.items()}
    return [replace(item, clinical=merged[item.patient]) for item in items]
