"""Writes and reads CSV files whose cells a spreadsheet never evaluates as formulas.

A spreadsheet evaluates text that begins with = + - @ as a formula, and a formula can send the table's content to a server. Such
a cell gets a leading apostrophe, as OWASP recommends (https://owasp.org/www-community/attacks/CSV_Injection); numbers are
written unchanged. All CSV files of dagman are written here, and reading removes the apostrophe again.
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
"""numpy kinds of columns that never hold text."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Some spreadsheets accept full-width signs as well, and ignore control characters in front of the sign.
_FORMULA = re.compile(r"'*[\t\r\n]*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20\t\r\n]")


def protect_cell(value: Any) -> Any:
    """Return the value to write into a cell: text that a spreadsheet would evaluate as a formula gets a leading apostrophe.

    >>> [protect_cell(value) for value in ("=1+1", "-7.5", -7.5, "a-b")]
    ["'=1+1", '-7.5', -7.5, 'a-b']
    """
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def restore_cell(text: str) -> str:
    """Undo `protect_cell`; other text is returned unchanged."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows to a UTF-8 file, atomically; None and NaN become empty cells."""
    with write_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([protect_cell(name) for name in columns])
        table.writerows([_empty_if_nan(protect_cell(value)) for value in row] for row in rows)


def write_frame(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a data frame atomically, without its index."""
    import pandas as pd

    safe = frame.copy(deep=False)
    for index in range(frame.shape[1]):
        column = frame.iloc[:, index]
        if column.dtype.kind not in _NUMERIC:
            # dtype=object, since pandas would turn integers with missing values into floats.
            safe.isetitem(index, pd.Series([protect_cell(value) for value in column], dtype=object).array)
    safe.columns = pd.Index([protect_cell(name) for name in frame.columns], dtype=object)
    with write_whole(path) as temporary:
        safe.to_csv(temporary, index=False, lineterminator="\n")


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a file written by `write_csv`; each row maps column names to text."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = [[restore_cell(cell) for cell in row] for row in csv.reader(file)] or [[]]
    return [dict(zip(header, row, strict=False)) for row in rows]


def restore_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Undo `write_frame`'s apostrophes in a data frame that was read from CSV."""
    restored = frame.rename(columns=lambda name: restore_cell(str(name)))
    for index in range(frame.shape[1]):
        column = frame.iloc[:, index]
        if column.dtype.kind not in _NUMERIC and any(isinstance(value, str) and value.startswith("'") for value in column):
            values = column.map(lambda value: restore_cell(value) if isinstance(value, str) else value)
            restored.isetitem(index, values.array)
    return restored


def _empty_if_nan(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value
