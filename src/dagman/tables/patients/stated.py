"""Which patient a scan belongs to, as the user states it: by a table of scans, or by a pattern of their paths.

Files such as NIfTI name no patient. Where nothing is stated, each is treated as a separate patient, which is counted and noted.
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
"""Scans named in a message."""


def state_patients(discovered: Discovery, stated: str | Path | None) -> Discovery:
    """What was found, with the patients that the user states; a scan whose file names one keeps it where nothing is stated.

    stated: A table with the columns `scan` (a file's name, or its path relative to the table) and `patient`, or a regular
    expression with one group, searched for in each file's name, then in its path. None changes nothing. Patients go through the
    key as all do.

    Raises:
        TableError, SettingsError: The table or pattern is wrong, or leaves a scan without a patient.
    """
    if stated is None or not discovered.series:
        return discovered
    find = _read_table(Path(stated), discovered.series) if is_table(stated) else _read_pattern(str(stated))
    names = [find(one) for one in discovered.series]
    left = [one.source for one, name in zip(discovered.series, names, strict=True) if name is None and one.patient_assumed]
    if left:
        count = count_noun(len(left), "scan has", "scans have")
        what = f"{count} no patient by this: {list_some((Path(source).name for source in left), limit=_SHOWN)}"
        do = (
            "Add a row for each of them"
            if is_table(stated)
            else "Correct the pattern, or give a table with the columns scan and patient"
        )
        raise SettingsError(what, where=f"--patients {stated}", do=do)
    series = [
        one if name is None else replace(one, patient=_hide(name), patient_from="user")
        for one, name in zip(discovered.series, names, strict=True)
    ]
    return replace(discovered, series=tuple(series))


def note_assumed(assumed: int, total: int) -> list[str]:
    """A sentence on the scans that were taken as a patient of their own, if there are any."""
    if not assumed:
        return []
    return [
        f"no patient is stated for {assumed} of {count_noun(total, 'scan')}: each was treated as a separate patient; "
        "--patients TABLE.csv or --patients 'REGEX' assigns them"
    ]


def note_patients(items: Sequence[Item]) -> list[str]:
    """`note_assumed` of items, where each is a scan."""
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
        # A bare name means the file of that name wherever it lies; a path means one place.
        place = tidy_path(scan, path.parent)
        held, key = (by_name, place) if "/" not in place else (by_path, str((path.parent / place).resolve()))
        if held.setdefault(key, patient) != patient:
            raise columns.error("a scan has two patients", [row], do="Keep one row per scan", of="scan")
        if held is by_name:
            by_path.setdefault(str((path.parent / place).resolve()), patient)
    several = Counter(name for one in series for name in _list_names(one))

    def find(one: Series) -> str | None:
        for place in (one.source, *map(str, one.files)):
            if (patient := by_path.get(str(Path(place).resolve()))) is not None:
                return patient
        for name in _list_names(one):
            if name in by_name:
                if several[name] > 1:
                    what = f"names {name!r}, and {several[name]} scans have that name"
                    raise TableError(what, where=path, do="Write their paths, relative to the table")
                return by_name[name]
        return None

    return find


def _list_names(series: Series) -> tuple[str, ...]:
    """What a table may call a series without its folder: the last part of its source, with and without suffix."""
    path = Path(series.source)
    return tuple(dict.fromkeys((path.name, name_file(path))))
