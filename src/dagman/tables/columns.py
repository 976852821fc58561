"""The columns of a table: found by name, converted by value, with the row named where one is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dagman.errors import TableError
from dagman.notes import Note, inform
from dagman.records.counts import count_noun, list_some, name_rows
from dagman.records.names import suggest_name
from dagman.tables.numbers import EMPTY_WORDS, MISSING_WORDS, parse_numbers
from dagman.tables.table_file import load_rows

_PLAIN = "Write a plain number, or leave the cell empty"


class Columns:
    """A table's columns as text; `path` is a CSV (comma, semicolon or tab), Parquet or Excel file.

    Values are stripped text, or None where a cell is empty, says NA, or says in a word that the value is missing; `notes` says
    what was read otherwise than it is written, of the columns that were asked for. Raises TableError if the file is absent,
    cannot be read, or has no rows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header, rows, self._separator = load_rows(self.path)
        self.names = tuple(header)
        self._values = {name: [_as_text(row[place]) for row in rows] for place, name in enumerate(self.names)}
        self._words = {name: [row[place] for row in rows] for place, name in enumerate(self.names)}
        self._notes: dict[str, None] = {}
        self.rows = len(rows)
        if not self.rows:
            raise TableError("has no rows", where=self.path, do="Write one item per row, below a header")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was read otherwise than it is written, of the columns read so far."""
        return tuple(inform(text) for text in self._notes)

    def text(self, name: str) -> list[str | None]:
        """The column's values; raises TableError naming the nearest column if there is none of this name."""
        if name not in self._values:
            raise TableError(f"has no column '{name}'", where=self.path, do=suggest_name(name, self.names))
        self._note_missing(name, [row for row, word in enumerate(self._words[name]) if word.lower() in MISSING_WORDS])
        return self._values[name]

    def numbers(self, name: str) -> np.ndarray:
        """The column as float64, NaN where empty; raises TableError naming the rows that hold something else."""
        read = parse_numbers(self.text(name), self._separator)
        self._refuse_ambiguous(name, read.ambiguous)
        if read.wrong:
            raise self.error(f"column '{name}' is not a number", read.wrong, do=_PLAIN, of=name)
        self._note_commas(name, read.with_commas)
        self._note_missing(name, read.blank)
        return np.array(read.values, dtype=np.float64)

    def numbers_or_words(self, name: str) -> list[float | str | None]:
        """A column of numbers, or one of words; raises TableError, naming rows, for one that mixes them.

        One ">89" among ages would make a category of each age.
        """
        texts = self.text(name)
        read = parse_numbers(texts, self._separator)
        known = [row for row, text in enumerate(texts) if text is not None and row not in set(read.blank)]
        if known and set(known) == set(read.wrong) and not read.ambiguous:
            return list(texts)
        endless = [row for row in read.wrong if _is_endless(texts[row])]
        if endless:
            raise self.error(f"clinical column '{name}' is not finite", endless, do=_PLAIN, of=name)
        self._refuse_ambiguous(name, read.ambiguous)
        if read.wrong:
            do = f"{_PLAIN}; if numbers are category codes, write all of them as words (such as T1)"
            odd = set(read.wrong) if 2 * len(read.wrong) <= len(known) else set(known) - set(read.wrong)
            kind = "text" if odd == set(read.wrong) else "numbers"
            raise self.error(f"clinical column '{name}' mixes numbers and text: {kind}", sorted(odd), do=do, of=name)
        self._note_commas(name, read.with_commas)
        self._note_missing(name, read.blank)
        return [None if math.isnan(value) else value for value in read.values]

    def error(self, what: str, rows: Sequence[int], *, do: str, of: str | None = None) -> TableError:
        """A TableError that names rows (counted from 1 below the header), with the value of column `of` in each."""
        named = [f"{row + 1} ('{self._values[of][row]}')" if of else str(row + 1) for row in rows]
        return TableError(f"{what} in row{'s' if len(named) > 1 else ''} {list_some(named)}", where=self.path, do=do)

    def _refuse_ambiguous(self, name: str, rows: Sequence[int]) -> None:
        if rows:
            do = "Write numbers with a decimal point and without thousands separators"
            raise self.error(f"column '{name}' has commas that could separate thousands or decimals", rows, do=do, of=name)

    def _note_commas(self, name: str, rows: Sequence[int]) -> None:
        if rows:
            first = self._values[name][rows[0]]
            self._notes[f"column '{name}' is read with decimal commas ({first} is {str(first).replace(',', '.')})"] = None

    def _note_missing(self, name: str, rows: Sequence[int]) -> None:
        if rows:
            words = ", ".join(sorted({f"'{self._words[name][row]}'" for row in rows}))
            self._notes[f"column '{name}' has {words} in {count_noun(len(rows), 'row')}: taken as missing ({name_rows(rows)})"] = (
                None
            )


def _as_text(text: str) -> str | None:
    return None if text.lower() in EMPTY_WORDS or text.lower() in MISSING_WORDS else text


def _is_endless(text: str | None) -> bool:
    try:
        return text is not None and math.isinf(float(text))
    except ValueError:
        return False
