"""Numbers and what they count, as sentences say it."""

from __future__ import annotations

from collections.abc import Iterable


def count_noun(number: int, one: str, many: str | None = None) -> str:
    """The number with its noun, and a verb where one follows; `many` is `one` with an s unless it is given.

    >>> count_noun(1, "scan"), count_noun(0, "scan"), count_noun(2, "scan was", "scans were")
    ('1 scan', '0 scans', '2 scans were')
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def list_some(names: Iterable[object], limit: int = 20) -> str:
    """Names in a row, at most `limit` of them, then how many more there are.

    >>> list_some(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    texts = [str(name) for name in names]
    more = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


def name_rows(rows: Iterable[int]) -> str:
    """Rows of a table, counted from 0, as its reader counts them: from 1 below the header.

    >>> name_rows([4]), name_rows([0, 1])
    ('row 5', 'rows 1, 2')
    """
    numbers = [row + 1 for row in rows]
    return f"row{'s' if len(numbers) > 1 else ''} {list_some(numbers)}"
