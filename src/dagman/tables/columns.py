"""The columns of a CSV or Parquet file: found by name, converted by value, with the row named where one is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dagman.errors import TableError
from dagman.records.names import suggest_name

# Not pandas' own list, which holds "None": a plausible class.
_MISSING = ("", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "null", "NULL")


def list_some(names: Iterable[object], limit: int = 20) -> str:
    """Names in a row, at most `limit` of them, then how many more there are.

    >>> list_some(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    texts = [str(name) for name in names]
    more = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


class Columns:
    """A table's columns as text; `path` is a CSV (comma, semicolon or tab) or Parquet file.

    Values are stripped text, or None where a cell is empty or says NA. Raises TableError if the file is absent,
    cannot be read, or has no rows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        frame = _load_frame(self.path)
        self.names = tuple(str(name).strip() for name in frame.columns)
        self._values = {name: [_as_text(v) for v in frame.iloc[:, i]] for i, name in enumerate(self.names)}
        self.rows = len(frame)
        if not self.rows:
            raise TableError("has no rows", where=self.path, do="List one item a row below the header")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> list[str | None]:
        """The column's values; raises TableError naming the nearest column if there is none of this name."""
        if name not in self._values:
            raise TableError(f"has no column '{name}'", where=self.path, do=suggest_name(name, self.names))
        return self._values[name]

    def numbers(self, name: str) -> np.ndarray:
        """The column as float64, NaN where empty; raises TableError naming the rows that hold something else."""
        values = [_as_number(value) for value in self.text(name)]
        wrong = [row for row, value in enumerate(values) if value is None]
        if wrong:
            raise self.error(f"column '{name}' is not a number", wrong, do="Write a plain number, or leave the cell empty", of=name)
        return np.array(values, dtype=np.float64)

    def error(self, what: str, rows: Sequence[int], *, do: str, of: str | None = None) -> TableError:
        """A TableError that names rows (counted from 1 below the header), with the value of column `of` in each."""
        named = [f"{row + 1} ('{self._values[of][row]}')" if of else str(row + 1) for row in rows]
        return TableError(f"{what} in row{'s' if len(named) > 1 else ''} {list_some(named)}", where=self.path, do=do)


def _load_frame(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise TableError("is not a file" if path.exists() else "does not exist", where=path, do="Give a CSV or Parquet file")
    try:
        if path.suffix.lower() in {".parquet", ".pq"}:
            return pd.read_parquet(path)
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        frame = pd.read_csv(
            path,
            sep=separator,
            dtype=str,
            encoding="utf-8-sig",
            keep_default_na=False,
            na_values=list(_MISSING),
            skipinitialspace=True,
        )
    except pd.errors.EmptyDataError:
        raise TableError("is empty", where=path, do="Write a header with a column 'scan', then one item a row") from None
    except UnicodeDecodeError:
        raise TableError("is not UTF-8 text", where=path, do="Save it as CSV in UTF-8, or as Parquet") from None
    except (pd.errors.ParserError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise TableError(f"cannot be read as a table ({reason})", where=path, do="Save it as CSV or Parquet") from None
    # pandas silently takes surplus leading fields for an index, which would shift every column.
    if not isinstance(frame.index, pd.RangeIndex):
        raise TableError("has rows with more fields than the header", where=path, do="Quote values that hold a comma")
    return frame


def _as_text(value: object) -> str | None:
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text in _MISSING else text


def _as_number(text: str | None) -> float | None:
    if text is None:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
