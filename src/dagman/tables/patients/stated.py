"""Assigns scans to patients as the user states it, by a table or by a pattern for the scans' paths.

Files such as NIfTI do not name their patient. Without a statement, each scan is treated as a separate patient, which is noted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dagman.errors import SettingsError, TableError
from dagman.records.counts import count_noun, list_some
from dagman.records.key import find_key
from dagman.scans.discovery import Discovery, Series
from dagman.scans.pseudonyms import name_file, name_patient
from dagman.tables.columns import Columns
from dagman.tables.items import Item
from dagman.tables.paths import tidy_path
from dagman.tables.table_file import is_table

_SHOWN = 5
"""Number of scans named in a message."""


def state_patients(discovered: Discovery, stated: str | Path | None) -> Discovery:
    """Assign the discovered series to the patients that the user states.

    A series without a statement keeps the patient named in its files. Stated names become pseudonyms if there is a key.

    Args:
        discovered: the series.
        stated: a table with the columns `scan` (a file name, or a path relative to the table) and `patient`, or a regular
            expression with one group, which is searched for in each file name, then in its path. None changes nothing.

    Raises:
        TableError: if the table is invalid or ambiguous.
        SettingsError: if the pattern is invalid, or a series remains without a patient.
    """
    if stated is None or not discovered.series:
        return discovered
    find = _read_table(Path(stated), discovered.series) if is_table(stated) else _read_pattern(str(stated))
    names = [find(series) for series in discovered.series]
    pairs = list(zip(discovered.series, names, strict=True))
    unassigned = [series.source for series, name in pairs if name is None and series.patient_assumed]
    if unassigned:
        count = count_noun(len(unassigned), "scan is", "scans are")
        what = f"{count} not assigned to a patient: {list_some((Path(source).name for source in unassigned), limit=_SHOWN)}"
        do = (
            "Add a row for each of them"
            if is_table(stated)
            else "Correct the pattern, or give a table with the columns scan and patient"
        )
        raise SettingsError(what, where=f"--patients {stated}", do=do)
    assigned = tuple(
        series if name is None else replace(series, patient=_hide(name), patient_from="user") for series, name in pairs
    )
    return replace(discovered, series=assigned)


def note_assumed(assumed: int, total: int) -> list[str]:
    """Return a note on the scans that are treated as separate patients because none is stated; [] if there are none."""
    if not assumed:
        return []
    return [
        f"no patient is stated for {assumed} of {count_noun(total, 'scan')}: each was treated as a separate patient; "
        "--patients TABLE.csv or --patients 'REGEX' assigns them"
    ]


def note_patients(items: Sequence[Item]) -> list[str]:
    """Return the note of `note_assumed` for items that are scans."""
    return note_assumed(sum(item.patient_assumed for item in items), len(items))


def _hide(name: str) -> str:
    return name if find_key() is None else name_patient(name)


def _read_pattern(text: str) -> Callable[[Series], str | None]:
    where = f"--patients {text}"
    if Path(text).is_file():
        raise TableError("is not a table", where=where, do="Give a CSV, Parquet or Excel file, or a regular expression")
    try:
        pattern = re.compile(text)
    except re.error as error:
        do = "Correct it, such as --patients '(sub-[0-9]+)'"
        raise SettingsError(f"is not a regular expression ({error})", where=where, do=do) from None
    if pattern.groups != 1:
        groups = "no group" if not pattern.groups else f"{pattern.groups} groups"
        do = "Put parentheses around the patient's name only, such as '(sub-[0-9]+)'; use (?:...) for groups that do not capture"
        raise SettingsError(f"has {groups}, not one", where=where, do=do)

    def find(series: Series) -> str | None:
        path = Path(series.source)
        match = pattern.search(path.name) or pattern.search(path.as_posix())
        return (match[1] or "").strip() or None if match else None

    return find


def _read_table(path: Path, series: Sequence[Series]) -> Callable[[Series], str | None]:
    columns = Columns(path)
    scans, patients = columns.text("scan"), columns.text("patient")
    by_path: dict[str, str] = {}
    by_name: dict[str, str] = {}
    for row, (scan, patient) in enumerate(zip(scans, patients, strict=True)):
        if scan is None or patient is None:
            raise columns.error("a scan or its patient is missing", [row], do="Fill the columns scan and patient")
        # A name without a folder means the file of that name in any folder.
        text = tidy_path(scan, path.parent)
        full = str((path.parent / text).resolve())
        known, key = (by_path, full) if "/" in text else (by_name, text)
        if known.setdefault(key, patient) != patient:
            raise columns.error("a scan has two patients", [row], do="Keep one row per scan", of="scan")
        if known is by_name:
            by_path.setdefault(full, patient)
    counts = Counter(name for one in series for name in _list_names(one))

    def find(one: Series) -> str | None:
        for source in (one.source, *map(str, one.files)):
            if (patient := by_path.get(str(Path(source).resolve()))) is not None:
                return patient
        for name in _list_names(one):
            if name in by_name:
                if counts[name] > 1:
                    what = f"names {name!r}, but {counts[name]} scans have that name"
                    raise TableError(what, where=path, do="Write their paths, relative to the table")
                return by_name[name]
        return None

    return find


def _list_names(series: Series) -> tuple[str, ...]:
    """The names by which a table may refer to a series without its folder: the file name, with and without suffix."""
    path = Path(series.source)
    return tuple(dict.fromkeys((path.name, name_file(path))))
