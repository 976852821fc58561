"""CSV files that a spreadsheet shows and does not run: the one writer of cells, and what undoes it on reading.

A spreadsheet takes text that begins with = + - @ for a formula, and a formula can send the table away. Such a cell is written
behind an apostrophe, as OWASP advises (CSV Injection); numbers are written as they are.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagman.records.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

_NUMERIC = "biufcmM"
"""Kinds of columns that hold no text."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Some spreadsheets take the wide signs for the narrow ones, and pass over what cannot be seen before them.
_FORMULA = re.compile(r"'*[\t\r\n]*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20\t\r\n]")


def protect_cell(value: Any) -> Any:
    """A cell's value as it is written: text that would be run as a formula comes behind an apostrophe.

    Examples:
        >>> [protect_cell(value) for value in ("=1+1", "-7.5", -7.5, "a-b")]
        ["'=1+1", '-7.5', -7.5, 'a-b']
    """
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def restore_cell(text: str) -> str:
    """The text that `protect_cell` was given; other text as it is."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows whole as UTF-8; None and NaN become empty cells."""
    with write_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([protect_cell(name) for name in columns])
        table.writerows([_leave_empty(protect_cell(value)) for value in row] for row in rows)


def write_frame(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a data frame whole, without its index."""
    import pandas as pd

    safe = frame.copy(deep=False)
    for place in range(frame.shape[1]):
        column = frame.iloc[:, place]
        if column.dtype.kind not in _NUMERIC:
            # As objects: pandas would make numbers with gaps into fractions.
            safe.isetitem(place, pd.Series([protect_cell(value) for value in column], dtype=object).array)
    safe.columns = pd.Index([protect_cell(name) for name in frame.columns], dtype=object)
    with write_whole(path) as temporary:
        safe.to_csv(temporary, index=False, lineterminator="\n")


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows that `write_csv` wrote, as text by column."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = [[restore_cell(cell) for cell in row] for row in csv.reader(file)] or [[]]
    return [dict(zip(header, row, strict=False)) for row in rows]


def restore_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A data frame that was read from CSV, with the text that `write_frame` was given."""
    restored = frame.rename(columns=lambda name: restore_cell(str(name)))
    for place in range(frame.shape[1]):
        column = frame.iloc[:, place]
        if column.dtype.kind not in _NUMERIC and any(isinstance(value, str) and value.startswith("'") for value in column):
            values = column.map(lambda value: restore_cell(value) if isinstance(value, str) else value)
            restored.isetitem(place, values.array)
    return restored


def _leave_empty(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value
