"""Text as numbers: decimal points or commas, words that say a value is missing, columns that hold numbers among words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_COMMA = re.compile(r"[+-]?\d+,\d+")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_BLANK = frozenset({"none", "-", "--", "---", ".", ".."})
"""Missing among numbers; elsewhere any of them may be a value."""
MISSING_WORDS = frozenset(
    {"unknown", "unk", "missing", "not available", "not known", "not reported", "not recorded", "not applicable", "n.a.", "?"}
)
"""Missing in every column, in any case, and noted."""
EMPTY_WORDS = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "#null!", "#value!", "#div/0!"})
"""What programs write for nothing, in any case."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A column's texts as numbers (NaN where missing, or where `wrong`), the rows that are not numbers, and notes."""

    values: list[float]
    wrong: list[int]
    with_commas: list[int]
    "Rows whose decimal comma was read as such."
    blank: list[int]
    "Rows whose word counts as missing among numbers only."
    ambiguous: list[int]
    "Rows such as 1,234: a thousand or a decimal."


def parse_numbers(texts: Sequence[str | None], separator: str) -> Numbers:
    """Read a column's texts; `separator` is the file's: beside semicolons 1,234 is a decimal, elsewhere it may be a thousand.

    Examples:
        >>> parse_numbers(["50,5", "51", None], ";").values[:2]
        [50.5, 51.0]
    """
    commas = [row for row, text in enumerate(texts) if text is not None and _COMMA.fullmatch(text)]
    points = any(text is not None and re.fullmatch(r"[+-]?\d+\.\d+", text) for text in texts)
    clear = separator == ";" or any(not _THOUSANDS.fullmatch(str(texts[row])) for row in commas)
    readable = set(commas) if clear and not points else set()
    values, wrong, blank = [], [], []
    for row, text in enumerate(texts):
        if text is not None and text.lower() in _BLANK:
            blank.append(row)
            text = None
        value = math.nan if text is None else _parse(text.replace(",", ".") if row in readable else text)
        if value is None:
            wrong.append(row)
        values.append(math.nan if value is None else value)
    return Numbers(
        values=values,
        wrong=wrong,
        with_commas=sorted(readable),
        blank=blank,
        ambiguous=[] if clear else commas,
    )


def _parse(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
