"""Apply a saved segmentation model to new scans: label maps on the scans' grids, volumes, and DICOM SEGs for DICOM scans."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dagman.errors import DagmanError, TaskError
from dagman.evaluation.segmentation_metrics import to_ml
from dagman.records.counts import count_noun
from dagman.records.hashes import hash_bytes
from dagman.records.journal import append_row, read_rows
from dagman.scans.discovery import Refusal
from dagman.scans.label_files import renew_dicom_labels, write_dicom_labels, write_label_map
from dagman.scans.scan import Scan, drop_voxels, hash_scan
from dagman.store.preparation import prepare_scan
from dagman.store.workers import Lost, count_workers, order_results, run_tasks
from dagman.tables.items import Item
from dagman.tables.patients import note_patients
from dagman.tasks.contract import find_unit
from dagman.tasks.prediction import Applied, Notify, PredictionSettings, Rows, list_items
from dagman.tasks.segment.model import SegmentationModel, load_model


def apply_segmentation(
    folder: Path, scans: Sequence[str | Path], out: Path, settings: PredictionSettings, notify: Notify
) -> Applied:
    """Apply the model in `folder`, one scan at a time, with a journal for resuming; see `dagman.tasks.prediction.Apply`."""
    model = load_model(folder, device=settings.device)
    items, refused = list_items(scans, (), settings)
    notes = note_patients(items)
    if settings.mirror and not model.mirrored:
        notes.append("--mirror: the model was not trained on mirrored crops; left and right structures may be confused")
    journal = out / "predictions.jsonl"
    kept: dict[str, dict[str, Rows]] = {}
    for row in read_rows(journal):
        if row["rows"]:
            kept.setdefault(row["rows"][0]["item"], {})[row["key"]] = row["rows"]
    _note_once(notes, _note_unread(items))
    work = _Work(folder=folder, digest=model.digest, threads=torch.get_num_threads(), out=out, settings=settings)
    tasks = [(item, kept.get(item.name, {})) for item in items]
    # This process has loaded the model already; workers load it from its folder.
    here = partial(_segment_item, work, model if settings.dask is None else None)
    workers = 1 if settings.dask is None else count_workers(len(tasks))
    rows: Rows = []
    hashes: list[str] = []
    if items:
        notify(f"scan 1 of {len(items)}: {items[0].name}")
    with contextlib.closing(run_tasks(here, tasks, workers, dask=settings.dask)) as results:
        for index, result in order_results(results):
            if isinstance(result, Lost):
                refused.append(Refusal(source=str(items[index].scan), reason=result.reason))
            else:
                hashes += [result.content] if result.content else []
                refused += [result.refused] if result.refused else []
                _note_once(notes, result.note)
                if result.rows and result.key not in kept.get(items[index].name, {}):
                    append_row(journal, {"key": result.key, "rows": result.rows})
                rows += [{**row, "patient": items[index].patient} for row in result.rows]
            if index + 1 < len(items):
                notify(f"scan {index + 2} of {len(items)}: {items[index + 1].name}")
    notes += model.contract.note_training_items(hashes) if model.contract else []
    return Applied(rows=rows, refused=tuple(refused), notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Everything that is the same for all scans; the digest ensures that workers load the same model."""

    folder: Path
    digest: str
    threads: int
    out: Path
    settings: PredictionSettings

    def load(self) -> SegmentationModel:
        """Load the model, once per process."""
        torch.set_num_threads(self.threads)
        return _load(self.folder, self.settings.device, self.digest)


@functools.lru_cache(maxsize=1)
def _load(folder: Path, device: str, digest: str) -> SegmentationModel:
    model = load_model(folder, device=device)
    if model.digest != digest:
        raise TaskError(
            "a worker reads a different model from this machine", where=folder, do="Use a folder that all machines share"
        )
    return model


@dataclass(frozen=True, kw_only=True)
class _Segmented:
    """Result for one scan: its content hash, key and rows of its label map, or why it was rejected."""

    content: str = ""
    key: str = ""
    rows: Rows = field(default_factory=list)
    note: str = ""
    refused: Refusal | None = None


def _segment_item(work: _Work, loaded: SegmentationModel | None, task: tuple[Item, dict[str, Rows]]) -> _Segmented:
    """Segment a scan, unless the journal has it and its label map exists."""
    (item, kept), settings = task, work.settings
    model = loaded or work.load()
    content = ""
    try:
        scan = model.encoder.read(item.scan)
        content = hash_scan(scan)
        identity = f"{content}|{item.name}|{scan.affine.matrix.tolist()}"
        key = hash_bytes(f"1|{model.digest}|{settings.mirror}|{identity}".encode())
        labels = work.out / "predictions" / f"{item.name}.nii.gz"
        segments = labels.with_name(f"{item.name}.dcm")
        if key in kept and labels.is_file():
            note = renew_dicom_labels(segments, model.names, item.scan, identified=settings.identified)
            return _Segmented(content=content, key=key, rows=kept[key], note=note)
        prepared = prepare_scan(scan, model.encoder.preparation)
        # Saves memory: a long scan's voxels are not needed during the forward passes, nor its classes while the file is written.
        scan = drop_voxels(scan)
        classes = model.label_prepared(prepared, scan, mirror=settings.mirror)
        rows = _measure_volumes(model, classes, scan, item)
        values = model.to_values(classes)
        del classes
        write_label_map(labels, values, scan)
        note = write_dicom_labels(segments, values, model.names, item.scan, identified=settings.identified)
    except DagmanError as error:
        return _Segmented(content=content, refused=Refusal.from_error(str(item.scan), error))
    return _Segmented(content=content, key=key, rows=rows, note=note)


def _measure_volumes(model: SegmentationModel, classes: NDArray, scan: Scan, item: Item) -> Rows:
    return [
        {
            "item": item.name,
            "patient": item.patient,
            "structure": structure.name,
            "value": structure.values[0],
            # Slice by slice, because a mask of the whole scan would be as large as its label map.
            "volume_ml": to_ml(sum(int(np.count_nonzero(part == code)) for part in classes), scan.spacing),
        }
        for code, structure in enumerate(model.structures, start=1)
    ]


def _note_unread(items: Sequence[Item]) -> str:
    """Note that masks and points of a table are ignored, because segmentation uses whole scans."""
    named = sum(find_unit(item) != "scan" for item in items)
    return f"masks and points of {count_noun(named, 'item')} are ignored: segmentation uses whole scans" if named else ""


def _note_once(notes: list[str], note: str) -> None:
    if note and note not in notes:
        notes.append(note)
