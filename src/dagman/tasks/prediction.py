"""`dagman predict`: apply a task's saved model to new scans, one at a time, and list the scans that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dagman.encoder.items import list_scans
from dagman.errors import TableError, TaskError
from dagman.records.counts import count_noun, list_some
from dagman.records.csv_file import write_frame
from dagman.records.lock import hold_lock
from dagman.records.provenance import write_command
from dagman.records.sources import describe_names
from dagman.scans.discovery import Refusal
from dagman.scans.label_files import describe_identity, name_outputs
from dagman.scans.pseudonyms import name_patient
from dagman.tables.clinical import merge_clinical
from dagman.tables.columns import Columns
from dagman.tables.items import Item
from dagman.tables.table import read_table
from dagman.tables.table_file import is_table
from dagman.tasks.registry import TASKS, Task, list_keeping, load_part

Rows = list[dict[str, Any]]
Notify = Callable[[str], None]

NO_CONTRACT = (
    "the model was saved by an earlier version of dagman, without a record of its training data: whether these items match is "
    "not checked"
)
"""Note for a model without a `Contract`."""


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """How a model is applied, and how a table of items is read (see `read_table`); `mirror` applies only to segmentation."""

    mirror: bool = False
    identified: bool = False
    "Whether DICOM SEGs contain the patient's identity from the source scans instead of a pseudonym."
    device: str = "auto"
    dask: str | None = None
    "Address of a Dask scheduler whose workers read scans and run networks, or `local`; None: this process."
    clinical: Path | None = None
    "Table with patients and the model's clinical columns, for scans given as files."
    patients: str | None = None
    "How to determine the patients of scans given as files, as in `state_patients`."
    patient: str = "patient"
    mask_label: int | None = None
    coordinates: str = "ras"
    ids: str = "checked"


@dataclass(frozen=True, kw_only=True)
class PredictionSummary:
    """Outcome of a prediction run, for display."""

    task: str
    out: Path
    predicted: int
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    identity: str = ""
    "Which identity the DICOM SEGs contain; empty if there are none."


@dataclass(frozen=True, kw_only=True)
class Applied:
    """Result of applying a model: rows of predictions.csv (each with `item`), rejected sources, and notes."""

    rows: Rows
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()


Apply = Callable[[Path, Sequence[str | Path], Path, PredictionSettings, Notify], Applied]
"""Function of a model's folder, the scans as given, OUT, the settings, and a callback that is notified of progress."""


def predict_scans(
    model: str | Path,
    scans: Sequence[str | Path],
    out: str | Path,
    settings: PredictionSettings | None = None,
    *,
    on_part: Notify | None = None,
) -> PredictionSummary:
    """Apply a task's model to scans, and write `predictions.csv`, `rejected.csv` and, for a segmentation, `predictions/`.

    Args:
        model: The --out folder of a task, or its `model/`.
        scans: Files and folders, or one table of items (CSV, Parquet); models of structures or points need a table.
        out: Folder for the results.
        settings: How the model is applied.
        on_part: Called with a description of each step of the work.

    Raises:
        TaskError: The folder holds no model, another run has locked `out`, or no scan can be used.
    """
    settings, out, notify = settings or PredictionSettings(), Path(out), on_part or (lambda text: None)
    task, apply, folder = find_model(model)
    with hold_lock(out, TaskError):
        applied = apply(folder, scans, out, settings, notify)
        if not is_table(Path(scans[0])):
            applied = replace(applied, notes=(*applied.notes, describe_names()))
        write_frame(out / "predictions.csv", pd.DataFrame(applied.rows))
        refused = [(refusal.source, refusal.reason) for refusal in applied.refused]
        write_frame(out / "rejected.csv", pd.DataFrame(refused, columns=["source", "reason"]))
        count = len({row["item"] for row in applied.rows})
        outcome = {"task": task.name, "predicted": count, "refused": len(refused), "notes": list(applied.notes)}
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
    return PredictionSummary(
        task=task.name, out=out, predicted=count, refused=applied.refused, notes=applied.notes, identity=identity
    )


def find_model(path: str | Path) -> tuple[Task, Apply, Path]:
    """Find the task of a saved model, the function that applies it, and its folder, which is `path` or its `model/`.

    Raises:
        TaskError: Neither folder holds a model.
    """
    for folder in (Path(path), Path(path) / "model"):
        for task in TASKS.values():
            if task.model is not None and (folder / task.model.file).is_file():
                return task, load_part(task.model.apply), folder
    do = f"Give the --out folder of dagman {list_keeping()}"
    raise TaskError("holds no model of a task" if Path(path).is_dir() else "is not a folder", where=path, do=do)


def list_items(
    scans: Sequence[str | Path], clinical: Sequence[str], settings: PredictionSettings
) -> tuple[list[Item], list[Refusal]]:
    """List the items of a table, or one item per series of the given files; names of the latter are unique, valid file names."""
    first = Path(scans[0])
    if len(scans) == 1 and is_table(first):
        if settings.clinical is not None:
            raise TaskError("--clinical cannot be combined with a table of items", where=first, do="Add its columns to the table")
        if settings.patients is not None:
            do = "Omit it: the table has a column of patients (--patient)"
            raise TaskError("--patients applies only to scans given as files", where=first, do=do)
        read = read_table(
            first,
            clinical=clinical,
            patient=settings.patient,
            mask_label=settings.mask_label,
            coordinates=settings.coordinates,
            ids=settings.ids,
        )
        return list(read.items), []
    items, refused = list_scans(list(scans), patients=settings.patients)
    names = name_outputs([item.name for item in items])
    items = [replace(item, name=name) for item, name in zip(items, names, strict=True)]
    if settings.clinical is not None:
        if not clinical:
            raise TaskError("--clinical was given, but the model uses no clinical columns", do="Omit it")
        items = _join_clinical(items, settings.clinical, clinical, settings.patient)
    return items, refused


def _join_clinical(items: Sequence[Item], path: Path, names: Sequence[str], patient: str) -> list[Item]:
    """Add the clinical values of their patients to items; raises TableError if the table lacks a patient."""
    columns = Columns(path)
    patients = columns.text(patient)
    read = {name: columns.numbers_or_words(name) for name in names}
    rows: dict[str, list[dict[str, float | str | None]]] = {}
    wanted = {item.patient for item in items}
    for row, name in enumerate(patients):
        if name is not None:
            # The user's table has the original patient IDs, which have to be turned into pseudonyms to match.
            name = name if name in wanted else name_patient(name)
            rows.setdefault(name, []).append({column: values[row] for column, values in read.items()})
    absent = sorted(wanted - set(rows))
    if absent:
        do = f"Write a row for each in the column '{patient}', by PatientID, file name, or pseudonym (dagman inspect shows it)"
        raise TableError(f"has no patient {list_some(absent)}", where=path, do=do)
    merged = {name: merge_clinical(of) for name, of in rows.items()}
    return [replace(item, clinical=merged[item.patient]) for item in items]
