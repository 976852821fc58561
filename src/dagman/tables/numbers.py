"""Parses numbers in tables: decimal points or commas, and words for missing values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_COMMA = re.compile(r"[+-]?\d+,\d+")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_BLANK = frozenset({"none", "-", "--", "---", ".", ".."})
"""Mean a missing value in a column of numbers; in other columns each may be a value."""
MISSING_WORDS = frozenset(
    {"unknown", "unk", "missing", "not available", "not known", "not reported", "not recorded", "not applicable", "n.a.", "?"}
)
"""Mean a missing value in every column, in upper or lower case; they are noted."""
EMPTY_WORDS = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "#null!", "#value!", "#div/0!"})
"""What programs write into empty cells, in upper or lower case."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers of a column, and the rows that are wrong or were not taken literally."""

    values: list[float]
    "NaN where a value is missing or wrong."
    wrong: list[int]
    "Rows that do not hold a finite number."
    with_commas: list[int]
    "Rows in which a comma was read as the decimal separator."
    blank: list[int]
    "Rows with a word that means a missing value only among numbers, such as '-'."
    ambiguous: list[int]
    "Rows such as 1,234, whose comma may separate thousands or decimals."


def parse_numbers(texts: Sequence[str | None], separator: str) -> Numbers:
    """Parse a column's texts as numbers.

    Args:
        texts: the column's values, None where missing.
        separator: the file's field separator. With semicolons, 1,234 has a decimal comma; otherwise it may mean a thousand.

    >>> parse_numbers(["50,5", "51", None], ";").values[:2]
    [50.5, 51.0]
    """
    commas = [row for row, text in enumerate(texts) if text is not None and _COMMA.fullmatch(text)]
    points = any(text is not None and re.fullmatch(r"[+-]?\d+\.\d+", text) for text in texts)
    is_clear = separator == ";" or any(not _THOUSANDS.fullmatch(str(texts[row])) for row in commas)
    decimal_commas = set(commas) if is_clear and not points else set()
    values, wrong, blank = [], [], []
    for row, text in enumerate(texts):
        if text is not None and text.lower() in _BLANK:
            blank.append(row)
            text = None
        value = math.nan if text is None else _parse(text.replace(",", ".") if row in decimal_commas else text)
        if value is None:
            wrong.append(row)
        values.append(math.nan if value is None else value)
    return Numbers(
        values=values,
        wrong=wrong,
        with_commas=sorted(decimal_commas),
        blank=blank,
        ambiguous=[] if is_clear else commas,
    )


def _parse(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
