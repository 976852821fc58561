"""Loads table files as rows of text: CSV in the variants that programs write, Parquet, and Excel workbooks (extra `excel`)."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from dagman.errors import MissingExtraError, TableError
from dagman.records.counts import list_some
from dagman.records.csv_file import restore_cell
from dagman.records.names import suggest_path

_PARQUET = (".parquet", ".pq")
_EXCEL = (".xlsx", ".xlsm")
SUFFIXES = (".csv", ".tsv", *_PARQUET, *_EXCEL)
"""Suffixes of files that are read as tables."""

Rows = list[list[str]]


def is_table(path: str | Path) -> bool:
    """Return whether a path has the suffix of a table; the file need not exist."""
    return Path(path).suffix.lower() in SUFFIXES


def load_rows(path: Path) -> tuple[list[str], Rows, str]:
    """Load a table file.

    CSV may begin with a byte order mark or a line such as `sep=;`, and its rows may end with separators. Only the first sheet
    of a workbook is read.

    Returns:
        The header, the rows (each as long as the header, "" where empty), and the field separator ("" if the format has none).

    Raises:
        TableError: if the file does not exist or cannot be read.
        MissingExtraError: for a workbook, if openpyxl is not installed.
    """
    if not path.is_file():
        do = f"Give a table ({', '.join(SUFFIXES)})"
        if path.exists():
            raise TableError("is not a file", where=path, do=do)
        raise TableError("does not exist", where=path, do=suggest_path(path, do))
    suffix = path.suffix.lower()
    if suffix in (".xls", ".xlsb", ".ods"):
        raise TableError(f"{suffix} files are not supported", where=path, do="Save it as .xlsx, or as CSV in UTF-8")
    if suffix in _PARQUET:
        return _load_frame(path, pd.read_parquet)
    if suffix in _EXCEL:
        return _load_frame(path, _read_workbook)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TableError("is not UTF-8 text", where=path, do="Save it as CSV in UTF-8, or as Parquet") from None
    except OSError as error:
        raise TableError(f"cannot be read as a table ({error.strerror})", where=path, do="Save it as CSV or Parquet") from None
    return _parse_csv(path, text)


def _parse_csv(path: Path, text: str) -> tuple[list[str], Rows, str]:
    first, _, rest = text.partition("\n")
    declared = first.strip().strip('"').lower()
    separator = max(",;\t", key=first.count)
    if declared.startswith("sep=") and len(declared) <= 5:
        # A line that Excel writes and reads to declare the separator; it is not a row.
        separator, text = (first.strip().strip('"')[4:] or "\t"), rest
    try:
        lines = csv.reader(text.splitlines(keepends=True), delimiter=separator, skipinitialspace=True, strict=True)
        rows = [[restore_cell(cell.strip()) for cell in line] for line in lines if any(cell.strip() for cell in line)]
    except (csv.Error, ValueError) as error:
        raise TableError(f"cannot be read as a table ({error})", where=path, do="Save it as CSV or Parquet") from None
    if not rows:
        raise TableError("is empty", where=path, do="Write a header with a column 'scan', then one item per row")
    header, *body = rows
    while header and not header[-1] and not any(row[len(header) - 1] for row in body if len(row) >= len(header)):
        header = header[:-1]
    width = len(header)
    surplus = [number for number, row in enumerate(body, start=1) if any(row[width:])]
    if surplus:
        where = f"row{'s' if len(surplus) > 1 else ''} {list_some(surplus)}"
        raise TableError(f"has more fields than the header in {where}", where=path, do=f"Quote values that hold a {separator!r}")
    return header, [row[:width] + [""] * (width - len(row)) for row in body], separator


def _read_workbook(path: Path) -> pd.DataFrame:
    try:
        return pd.read_excel(path, engine="openpyxl", dtype=object)
    except ImportError:
        raise MissingExtraError("openpyxl", "excel") from None


def _load_frame(path: Path, read: Callable[[Path], pd.DataFrame]) -> tuple[list[str], Rows, str]:
    try:
        frame = read(path)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise TableError(f"cannot be read as a table ({reason})", where=path, do="Save it as CSV or Parquet") from None
    return (
        [str(name).strip() for name in frame.columns],
        [[_as_text(value) for value in row] for row in frame.itertuples(index=False, name=None)],
        "",
    )


def _as_text(value: object) -> str:
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value).strip()
