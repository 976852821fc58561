"""Reads findings on one scan, such as nodules, from a table, as points with a diameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dagman.errors import TableError
from dagman.notes import Note, inform, warn
from dagman.records.counts import count_noun, list_some
from dagman.scans.pseudonyms import name_file, name_patient
from dagman.scans.scan import Scan
from dagman.tables.columns import Columns
from dagman.tables.items import Item, check_points
from dagman.tables.table import CENTER_COLUMNS

COORDINATES = ("ras", "lps", "voxels")
_LUNA = ("coordX", "coordY", "coordZ")
"""LUNA16's columns, in LPS millimetres as in DICOM."""
_POINTS = (CENTER_COLUMNS, ("x_mm", "y_mm", "z_mm"), _LUNA, ("center_x", "center_y", "center_z"), ("x", "y", "z"))
_DIAMETERS = ("diameter_mm", "diameter", "size_mm")
_NAMES = ("name", "item", "nodule", "finding", "id")
_SCANS = ("scan", "seriesuid", "patient")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A named point of a scan in RAS millimetres, with its diameter in mm if known."""

    name: str
    center_mm: tuple[float, float, float]
    diameter_mm: float | None = None


def read_marks(path: str | Path, scan: Scan, *, place: str | Path, coordinates: str = "") -> tuple[list[Mark], list[Note]]:
    """Read the marks of one scan from a table (CSV, Parquet, Excel).

    The rows of the scan are found by the first of these columns that exists: `scan` (a path relative to the table, or a file
    name), `seriesuid`, `patient`. Without any of them, all rows are taken. The centre is read from `center_x_mm`, ..., or
    from `x_mm`, `coordX` (LUNA16), `center_x` or `x`; the diameter from `diameter_mm`, `diameter` or `size_mm`.

    Args:
        path: the table.
        scan: the scan that the marks belong to.
        place: the path from which the scan was read.
        coordinates: "ras" or "lps" millimetres, or "voxels" of the scan's file, from 0; "" means LPS for `coordX`, else RAS.

    Returns:
        The marks that lie inside the scan, and notes on the rows that were excluded.

    Raises:
        TableError: if the table has no columns with points, a coordinate is missing, or most points lie outside the scan.
    """
    if coordinates not in ("", *COORDINATES):
        raise TableError(f"coordinates '{coordinates}' are unknown", where=path, do="Use --coordinates ras, lps or voxels")
    columns = Columns(path)
    axes = next((axes for axes in _POINTS if all(name in columns for name in axes)), None)
    if axes is None:
        raise TableError("has no columns with points", where=path, do=f"Name them {', '.join(CENTER_COLUMNS)}")
    rows, notes = _choose_rows(columns, scan, Path(place))
    points = np.stack([columns.numbers(name) for name in axes], axis=1)
    empty = [row for row in rows if np.isnan(points[row]).any()]
    if empty:
        raise columns.error("a coordinate is missing", empty, do=f"Fill {', '.join(axes)}, or remove these rows")
    if coordinates == "voxels":
        points = scan.affine.to_world(points)
    elif coordinates == "lps" or (not coordinates and axes == _LUNA):
        points = points * (-1.0, -1.0, 1.0)
    diameters = next((columns.numbers(name) for name in _DIAMETERS if name in columns), np.full(columns.rows, np.nan))
    wrong = [row for row in rows if diameters[row] <= 0]
    if wrong:
        raise columns.error("a diameter is not above 0", wrong, do="Give it in mm, or leave the cell empty")
    names = _name_rows(columns)
    items = [
        Item(index=row, name=names[row], scan=Path(place), patient="", center_mm=(points[row][0], points[row][1], points[row][2]))
        for row in rows
    ]
    inside, notes_outside = check_points((item, scan.shape, scan.affine) for item in items)
    marks = [
        Mark(
            name=item.name,
            center_mm=item.center_mm,
            diameter_mm=None if np.isnan(diameters[item.index]) else float(diameters[item.index]),
        )
        for item in inside
        if item.center_mm is not None
    ]
    return marks, [*notes, *map(warn, notes_outside), *columns.notes]


def _choose_rows(columns: Columns, scan: Scan, place: Path) -> tuple[list[int], list[Note]]:
    """Find the rows of this scan by the first column that names scans or patients."""
    column = next((name for name in _SCANS if name in columns), None)
    if column is None:
        return list(range(columns.rows)), [
            inform(f"{columns.path.name} names no scans: all its rows are treated as marks of this one")
        ]
    texts = columns.text(column)
    aliases = {place.name, name_file(place), place.name.partition("#")[2], scan.patient} - {""}

    def is_this_scan(text: str | None) -> bool:
        if not text:
            return False
        if column == "scan":
            same = (columns.path.parent / text).resolve() == place.resolve()
            return same or Path(text).name == place.name or text in aliases
        return text in aliases or name_patient(text) == scan.patient or (column == "seriesuid" and text in place.name)

    rows = [row for row, text in enumerate(texts) if is_this_scan(text)]
    if rows:
        return rows, []
    values = list_some(sorted({text for text in texts if text}))
    return [], [warn(f"{columns.path.name} has no row for this scan in {count_noun(columns.rows, 'row')}: '{column}' is {values}")]


def _name_rows(columns: Columns) -> Sequence[str]:
    name = next((name for name in _NAMES if name in columns), None)
    texts = columns.text(name) if name else [None] * columns.rows
    labels = columns.text("label") if "label" in columns else [None] * columns.rows
    # A number is not understandable without its column's name.
    marks = [
        f"mark {row + 1}" if text is None else f"{name} {text}" if text.replace(".", "").isdigit() else text
        for row, text in enumerate(texts)
    ]
    return [f"{mark} (label {label})" if label else mark for mark, label in zip(marks, labels, strict=True)]
