"""Reads tables of items: each row is a scan, a structure in a scan, or a point.

Columns are `scan` (a path relative to the table, or the id of a stored scan), `patient`, and either `mask` (with `label_value`)
or `center_x_mm, center_y_mm, center_z_mm`; then a label, or time and event, `split`, and clinical columns. Rows without a required
value are skipped and noted in `Table.notes`; invalid values are refused with the numbers of their rows.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dagman.errors import TableError
from dagman.notes import Note, inform, warn
from dagman.records.alike import find_alike
from dagman.records.counts import count_noun, list_some, name_rows
from dagman.scans.dicom import source_exists
from dagman.tables.clinical import note_many_categories, read_clinical_columns
from dagman.tables.columns import Columns
from dagman.tables.items import Item
from dagman.tables.paths import refuse_drives, tidy_path
from dagman.tables.structures import read_label_values

IDS = ("checked", "exact")
"""How spellings of patients and labels are compared; see `read_table`."""
CENTER_COLUMNS = ("center_x_mm", "center_y_mm", "center_z_mm")
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_EVENTS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_SUFFIX = re.compile(r"(\.nii\.gz|\.[A-Za-z][A-Za-z0-9]{0,4})$")
_PATIENT_LIKE = re.compile(r"(patient|subject|case|pat)[ _-]?(id|name|key|code|no|nr|number)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The items of a table, in its order, and notes on how they were read."""

    path: Path
    items: tuple[Item, ...]
    columns: tuple[str, ...]
    "All columns of the file."
    classes: tuple[str, ...] = ()
    "The labels that occur, sorted; in a binary task the last is the positive one."
    notes: tuple[Note, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    "The columns that were read as label, time and event."

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """Names of the items."""
        return [item.name for item in self.items]

    @property
    def patients(self) -> np.ndarray:
        """The patient of each item."""
        return np.array([item.patient for item in self.items], dtype=str)

    @property
    def codes(self) -> np.ndarray:
        """The label of each item as an index into `classes`."""
        code_of = {name: code for code, name in enumerate(self.classes)}
        return np.array([code_of[str(item.label)] for item in self.items], dtype=np.int64)

    @property
    def times(self) -> np.ndarray:
        """The time of each item, in the table's unit."""
        return np.array([item.time for item in self.items], dtype=np.float64)

    @property
    def events(self) -> np.ndarray:
        """Whether the event of each item was observed; False means censored."""
        return np.array([item.event for item in self.items], dtype=bool)

    @property
    def splits(self) -> np.ndarray | None:
        """The given split of each item (train, val or test), or None if the table has none."""
        if any(item.split is None for item in self.items):
            return None
        return np.array([item.split for item in self.items], dtype=str)


def read_table(
    path: str | Path,
    *,
    label: str | None = None,
    time: str | None = None,
    event: str | None = None,
    clinical: Sequence[str] = (),
    patient: str = "patient",
    split: str | None = "split",
    mask_label: int | None = None,
    coordinates: str = "ras",
    known_ids: Collection[str] = (),
    ids: str = "checked",
) -> Table:
    """Read a CSV, Parquet or Excel table of items.

    Args:
        path: the table.
        label: column of the class or number to predict.
        time: column of the follow-up time.
        event: column of the event, 0 or 1.
        clinical: clinical columns.
        patient: column of the patient.
        split: column of the split, used if it exists; None ignores it.
        mask_label: the structure's value in every mask, instead of a column `label_value`.
        coordinates: coordinate system of the centre columns, "ras" or "lps"; "lps" is converted to RAS.
        known_ids: ids of stored scans, which `scan` may contain instead of a path.
        ids: "checked" refuses patients, or labels, that differ only in leading zeros, case, blanks or dashes; "exact" accepts
            them as different.

    Raises:
        TableError: if a column is missing or holds an invalid value, or items contradict each other.
    """
    if ids not in IDS:
        raise TableError(f"ids '{ids}' is unknown", where=path, do="Use --ids checked or exact")
    columns = Columns(path)
    reader = _Reader(columns)
    root = columns.path.parent
    scans = _tidy_paths(reader.need("scan"), columns, known_ids)
    labels = reader.need(label) if label else None
    times, events = _read_outcome(reader, time, event)
    splits = _read_splits(reader, split)
    patients = _read_patients(reader, patient)
    if ids == "checked" and patient in columns and patient != "scan":
        _refuse_alike(columns, patient, patients, "patient")
    if ids == "checked" and labels is not None:
        _refuse_alike(columns, str(label), labels, "label")
    masks = _tidy_paths(columns.text("mask"), columns) if "mask" in columns else [None] * columns.rows
    values, structures = read_label_values(columns, mask_label, [root / text if text else None for text in masks])
    centers = _read_centers(columns, coordinates)
    roles = {"label": label, "time": time, "event": event}
    clinicals = read_clinical_columns(columns, clinical, roles=roles)

    rows = reader.finish()
    keys = {
        row: (scans[row], masks[row], values[row] if structures[row] is None else structures[row], centers[row]) for row in rows
    }
    rows = _drop_duplicates(reader, rows, keys, {"labels": labels, "times": times, "events": events})
    if labels is not None:
        labels = _tidy_labels(labels)
    names = _read_names(columns, rows) or _name_rows(rows, keys)
    items = tuple(
        Item(
            index=row,
            name=names[row],
            scan=str(scans[row]) if scans[row] in known_ids else root / str(scans[row]),
            patient=str(patients[row]),
            mask=root / str(masks[row]) if masks[row] else None,
            label_value=values[row],
            structure=structures[row],
            center_mm=centers[row],
            label=labels[row] if labels else None,
            time=float(times[row]) if times is not None else None,
            event=events[row] if events else None,
            split=splits[row] if splits else None,
            clinical={name: column[row] for name, column in clinicals.items()},
        )
        for row in rows
    )
    classes = _order_classes({str(item.label) for item in items}) if labels else ()
    notes = (*reader.notes, *columns.notes, *note_many_categories(clinicals, len({item.patient for item in items})))
    table = Table(
        path=columns.path,
        items=items,
        columns=columns.names,
        classes=classes,
        notes=notes,
        roles={role: name for role, name in roles.items() if name},
    )
    _refuse_one_sided(table, label, event)
    _refuse_shared_patients(table)
    _refuse_absent_files(table)
    return table


class _Reader:
    """Collects the rows without a value in a required column, and notes on them."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.notes: list[Note] = []
        self._dropped: set[int] = set()

    def need(self, name: str) -> list[str | None]:
        """Return a column in which every row needs a value; rows without one are dropped."""
        values = self.columns.text(name)
        empty = [row for row, value in enumerate(values) if value is None]
        if empty:
            rows = count_noun(len(empty), "row")
            self.notes.append(warn(f"column '{name}' is empty in {rows}: skipped ({name_rows(empty)})"))
            self._dropped.update(empty)
        return values

    def finish(self) -> list[int]:
        """Return the remaining rows; raises TableError if there are none."""
        rows = [row for row in range(self.columns.rows) if row not in self._dropped]
        if not rows:
            reasons = "; ".join(note.text for note in self.notes)
            raise TableError(f"no row can be used: {reasons}", where=self.columns.path, do="Fill these columns")
        return rows


def _tidy_paths(texts: Sequence[str | None], columns: Columns, known: Collection[str] = ()) -> list[str | None]:
    refuse_drives(texts, columns.path)
    root = columns.path.parent
    return [text if text is None or text in known else tidy_path(text, root) for text in texts]


def _read_outcome(reader: _Reader, time: str | None, event: str | None) -> tuple[np.ndarray | None, list[bool] | None]:
    if time is None and event is None:
        return None, None
    columns = reader.columns
    if time is None or event is None:
        raise TableError("time and event must be given together", where=columns.path, do="Name both: --time COL --event COL")
    reader.need(time)
    times = columns.numbers(time)
    negative = np.flatnonzero(times < 0).tolist()
    if negative:
        raise columns.error(f"time '{time}' is negative", negative, do="Measure the time from the date of the scan", of=time)
    texts = reader.need(event)
    wrong = [row for row, text in enumerate(texts) if text is not None and text.lower() not in _EVENTS]
    if wrong:
        raise columns.error(
            f"event '{event}' is not 0 or 1", wrong, do="Write 1 if the event was observed, 0 if censored", of=event
        )
    return times, [_EVENTS[text.lower()] if text else False for text in texts]


def _read_splits(reader: _Reader, split: str | None) -> list[str | None] | None:
    if split is None or (split == "split" and split not in reader.columns):
        return None
    texts = reader.need(split)
    wrong = [row for row, text in enumerate(texts) if text is not None and text.lower() not in _SPLITS]
    if wrong:
        raise reader.columns.error(f"split '{split}' is unknown", wrong, do="Write train, val or test", of=split)
    return [_SPLITS[text.lower()] if text else None for text in texts]


def _read_patients(reader: _Reader, patient: str) -> list[str | None]:
    columns = reader.columns
    if patient in columns or patient != "patient":
        return reader.need(patient)
    similar = [name for name in columns.names if _PATIENT_LIKE.fullmatch(name)]
    if similar:
        # A wrong guess here would put scans of one patient into different folds without anyone noticing.
        remedy = f"Pass --patient {similar[0]}, or --patient scan if every scan is of a different patient"
        raise TableError("has no column 'patient'", where=columns.path, do=remedy)
    scans = len(set(filter(None, columns.text("scan"))))
    reader.notes.append(inform(f"no column 'patient': each of {count_noun(scans, 'scan')} is treated as a separate patient"))
    return [_SUFFIX.sub("", text) if text else None for text in columns.text("scan")]


def _read_centers(columns: Columns, coordinates: str) -> list[tuple[float, float, float] | None]:
    if coordinates not in ("ras", "lps"):
        raise TableError(f"coordinates '{coordinates}' are unknown", where=columns.path, do="Use --coordinates ras or lps")
    present = [name for name in CENTER_COLUMNS if name in columns]
    if not present:
        return [None] * columns.rows
    points = np.stack([columns.numbers(name) for name in CENTER_COLUMNS], axis=1)
    partial = np.flatnonzero(np.isnan(points).any(axis=1) & ~np.isnan(points).all(axis=1)).tolist()
    if partial:
        raise columns.error("a coordinate is missing", partial, do=f"Fill {', '.join(CENTER_COLUMNS)}, or none of them")
    if coordinates == "lps":
        points = points * (-1.0, -1.0, 1.0)
    return [None if np.isnan(x) else (float(x), float(y), float(z)) for x, y, z in points]


def _refuse_alike(columns: Columns, name: str, texts: Sequence[str | None], what: str) -> None:
    groups = find_alike(text for text in texts if text is not None)
    if groups:
        shown = list_some((" and ".join(f"'{name}'" for name in group) for group in groups), limit=5)
        alike = set(groups[0])
        rows = list_some((row + 1 for row, text in enumerate(texts) if text in alike), limit=6)
        do = f"Write the same {what} the same way everywhere, or pass --ids exact if they really differ"
        problem = "differ only in leading zeros, case, blanks or dashes"
        raise TableError(f"values of column '{name}' {problem}: {shown} (the first in rows {rows})", where=columns.path, do=do)


def _drop_duplicates(
    reader: _Reader, rows: list[int], keys: dict[int, tuple], outcomes: dict[str, Sequence | np.ndarray | None]
) -> list[int]:
    first: dict[tuple, int] = {}
    repeated = []
    for row in rows:
        earlier = first.setdefault(keys[row], row)
        if earlier == row:
            continue
        for what, values in outcomes.items():
            if values is not None and values[row] != values[earlier]:
                do = "Keep one of them, or distinguish them by mask, label_value or center"
                raise reader.columns.error(f"the same item has different {what}", [earlier, row], do=do)
        repeated.append(row)
    if repeated:
        text = f"{count_noun(len(repeated), 'row')} identical to an earlier one: skipped ({name_rows(repeated)})"
        reader.notes.append(warn(text))
    return [row for row in rows if row not in set(repeated)]


def _tidy_labels(labels: Sequence[str | None]) -> list[str | None]:
    """Write whole numbers without a fraction: many programs write 1.0 as soon as one cell of the column is empty."""
    if all(text is None or re.fullmatch(r"-?\d+(\.0*)?", text) for text in labels):
        return [None if text is None else str(int(float(text))) for text in labels]
    return list(labels)


def _order_classes(labels: Collection[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=float))
    except ValueError:
        return tuple(sorted(labels))


def _read_names(columns: Columns, rows: list[int]) -> dict[int, str]:
    """The names in a column `item`, which avoid storing file names; {} if they do not distinguish all rows."""
    if "item" not in columns:
        return {}
    names = {row: text for row, text in enumerate(columns.text("item")) if text and row in rows}
    return names if len(set(names.values())) == len(rows) else {}


def _name_rows(rows: list[int], keys: dict[int, tuple]) -> dict[int, str]:
    """Name rows by the shortest description that distinguishes them all, so that names do not depend on the order of rows."""

    def strip(text: str) -> str:
        return _SUFFIX.sub("", text)

    descriptions: list[Callable[[tuple], str]] = [
        lambda key: strip(Path(key[0]).name),
        lambda key: strip(key[0]),
        lambda key: strip(key[0]) + (f":{key[2]}" if key[2] is not None else ""),
        lambda key: strip(key[0]) + (f":{strip(Path(key[1]).name)}" if key[1] else ""),
        lambda key: strip(key[0]) + (f"@{key[3][0]:g},{key[3][1]:g},{key[3][2]:g}" if key[3] else ""),
    ]
    for describe in descriptions:
        names = {row: describe(keys[row]) for row in rows}
        if len(set(names.values())) == len(rows):
            return names
    return {row: ":".join(str(part) for part in keys[row] if part is not None) for row in rows}


def _refuse_one_sided(table: Table, label: str | None, event: str | None) -> None:
    if label and len(table.classes) < 2:
        do = "Give items of at least two classes, or another --label"
        raise TableError(f"column '{label}' has only one class ('{table.classes[0]}')", where=table.path, do=do)
    if event and not table.events.any():
        do = "Nothing can be learned without events; check the column, or wait for follow-up"
        raise TableError(f"all items are censored: column '{event}' is 0 in every row", where=table.path, do=do)


def _refuse_shared_patients(table: Table) -> None:
    parts: dict[str, set[str]] = defaultdict(set)
    for item in table.items:
        if item.split:
            parts[item.patient].add(item.split)
    shared = sorted(f"{patient} ({' and '.join(sorted(splits))})" for patient, splits in parts.items() if len(splits) > 1)
    if shared:
        do = "Put all items of a patient into one split"
        raise TableError(f"patients are in more than one split: {list_some(shared)}", where=table.path, do=do)


def _refuse_absent_files(table: Table) -> None:
    counts, names = [], []
    for what, paths in (("scan", [item.scan for item in table.items]), ("mask", [item.mask for item in table.items])):
        unique = dict.fromkeys(path for path in paths if isinstance(path, Path))
        absent = [os.path.relpath(path, table.path.parent) for path in unique if not source_exists(path)]
        if absent:
            counts.append(count_noun(len(absent), what))
            names.append(list_some(absent))
    if counts:
        verb = "does" if counts in (["1 scan"], ["1 mask"]) else "do"
        do = "Paths are relative to the table's folder; correct them, or remove these rows"
        raise TableError(f"{' and '.join(counts)} {verb} not exist: {'; '.join(names)}", where=table.path, do=do)
