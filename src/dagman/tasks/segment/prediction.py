"""A kept segmentation model on new scans: label maps on their own grids, volumes, and DICOM SEG where the scan came as DICOM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dagman.errors import DagmanError
from dagman.evaluation.segmentation_metrics import measure_volume
from dagman.records.counts import count_noun
from dagman.records.hashes import hash_bytes
from dagman.records.journal import append_row, read_rows
from dagman.scans.discovery import Refusal
from dagman.scans.label_files import renew_dicom_labels, write_dicom_labels, write_label_map
from dagman.scans.scan import Scan, hash_scan
from dagman.tables.items import Item
from dagman.tables.patients import note_patients
from dagman.tasks.contract import find_unit
from dagman.tasks.prediction import Applied, Notify, PredictionSettings, Rows, list_items
from dagman.tasks.segment.model import SegmentationModel, load_model


def apply_segmentation(
    folder: Path, scans: Sequence[str | Path], out: Path, settings: PredictionSettings, notify: Notify
) -> Applied:
    """Apply the model in `folder`, one scan at a time; what was done is kept in a journal. See `dagman.tasks.prediction.Apply`."""
    model = load_model(folder, device=settings.device)
    items, refused = list_items(scans, (), settings)
    notes = note_patients(items)
    if settings.mirror and not model.mirrored:
        notes.append("--mirror: the model was not trained on mirrored crops; structures that differ by side may be mixed up")
    journal = out / "predictions.jsonl"
    kept = {row["key"]: row["rows"] for row in read_rows(journal)}
    rows: Rows = []
    hashes: list[str] = []
    _note_once(notes, _note_unread(items))
    for number, item in enumerate(items, start=1):
        notify(f"scan {number} of {len(items)}: {item.name}")
        try:
            scan = model.encoder.read(item.scan)
            content = hash_scan(scan)
            hashes.append(content)
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
    notes += model.contract.note_training_items(hashes) if model.contract else []
    return Applied(rows=rows, refused=tuple(refused), notes=tuple(notes))


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


def _note_unread(items: Sequence[Item]) -> str:
    """A note where a table names masks or points: a segmentation reads whole scans."""
    named = sum(find_unit(item) != "scan" for item in items)
    return f"masks and points of {count_noun(named, 'item')} are not read: a segmentation is of whole scans" if named else ""


def _note_once(notes: list[str], note: str) -> None:
    if note and note not in notes:
        notes.append(note)
