"""Gives access to a table's columns by name, converted to text or numbers; errors name the rows that are wrong."""

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
    """The columns of a CSV (comma, semicolon or tab), Parquet or Excel file, as text.

    Values are stripped. An empty cell, NA, and words that mean a missing value (such as "unknown") become None.

    Raises:
        TableError: if the file does not exist, cannot be read, or has no rows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header, rows, self._separator = load_rows(self.path)
        self.names = tuple(header)
        self._words = {name: [row[index] for row in rows] for index, name in enumerate(self.names)}
        self._values = {name: [_as_text(word) for word in words] for name, words in self._words.items()}
        self._notes: dict[str, None] = {}
        self.rows = len(rows)
        if not self.rows:
            raise TableError("has no rows", where=self.path, do="Write one item per row, below a header")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes on values of the columns read so far that were not taken literally: decimal commas, words for missing values."""
        return tuple(inform(text) for text in self._notes)

    def text(self, name: str) -> list[str | None]:
        """Return a column's values.

        Raises:
            TableError: if there is no column of this name (the message suggests the most similar one), or more than one.
        """
        if name not in self._values:
            raise TableError(f"has no column '{name}'", where=self.path, do=suggest_name(name, self.names))
        if (count := self.names.count(name)) > 1:
            raise TableError(f"has {count} columns '{name}'", where=self.path, do="Rename or remove all but one of them")
        self._note_missing(name, [row for row, word in enumerate(self._words[name]) if word.lower() in MISSING_WORDS])
        return self._values[name]

    def numbers(self, name: str) -> np.ndarray:
        """Return a column as float64, NaN where empty.

        Raises:
            TableError: naming the rows that do not hold a number.
        """
        parsed = parse_numbers(self.text(name), self._separator)
        self._refuse_ambiguous(name, parsed.ambiguous)
        if parsed.wrong:
            raise self.error(f"column '{name}' is not a number", parsed.wrong, do=_PLAIN, of=name)
        self._note_commas(name, parsed.with_commas)
        self._note_missing(name, parsed.blank)
        return np.array(parsed.values, dtype=np.float64)

    def numbers_or_words(self, name: str) -> list[float | str | None]:
        """Return a column's values as numbers if all are numbers, or as text if none is.

        Raises:
            TableError: naming the rows, if the column mixes both: with one ">89", every age would become a category.
        """
        texts = self.text(name)
        parsed = parse_numbers(texts, self._separator)
        known = [row for row, text in enumerate(texts) if text is not None and row not in set(parsed.blank)]
        if known and set(known) == set(parsed.wrong) and not parsed.ambiguous:
            return list(texts)
        infinite = [row for row in parsed.wrong if _is_infinite(texts[row])]
        if infinite:
            raise self.error(f"clinical column '{name}' is not finite", infinite, do=_PLAIN, of=name)
        self._refuse_ambiguous(name, parsed.ambiguous)
        if parsed.wrong:
            do = f"{_PLAIN}; if numbers are category codes, write all of them as words (such as T1)"
            minority = set(parsed.wrong) if 2 * len(parsed.wrong) <= len(known) else set(known) - set(parsed.wrong)
            kind = "text" if minority == set(parsed.wrong) else "numbers"
            raise self.error(f"clinical column '{name}' mixes numbers and text: {kind}", sorted(minority), do=do, of=name)
        self._note_commas(name, parsed.with_commas)
        self._note_missing(name, parsed.blank)
        return [None if math.isnan(value) else value for value in parsed.values]

    def error(self, what: str, rows: Sequence[int], *, do: str, of: str | None = None) -> TableError:
        """Return a TableError that names rows, counted from 1 without the header, and the value of column `of` in each."""
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
            where = f"{count_noun(len(rows), 'row')}: treated as missing ({name_rows(rows)})"
            self._notes[f"column '{name}' has {words} in {where}"] = None


def _as_text(text: str) -> str | None:
    return None if text.lower() in EMPTY_WORDS or text.lower() in MISSING_WORDS else text


def _is_infinite(text: str | None) -> bool:
    try:
        return text is not None and math.isinf(float(text))
    except ValueError:
        return False
