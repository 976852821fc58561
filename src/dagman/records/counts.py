"""Formats counts, lists and row numbers for messages."""

from __future__ import annotations

from collections.abc import Iterable


def count_noun(number: int, one: str, many: str | None = None) -> str:
    """Return the number followed by its noun (and verb) in the singular or plural.

    Args:
        number: how many there are.
        one: singular form.
        many: plural form; by default the singular with an s.

    >>> count_noun(1, "scan"), count_noun(0, "scan"), count_noun(2, "scan was", "scans were")
    ('1 scan', '0 scans', '2 scans were')
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def list_some(names: Iterable[object], limit: int = 20) -> str:
    """Join at most `limit` names with commas, followed by how many more there are.

    >>> list_some(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    texts = [str(name) for name in names]
    more = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


def name_rows(rows: Iterable[int]) -> str:
    """Name rows of a table, given as indices from 0, the way a reader counts them: from 1, without the header.

    >>> name_rows([4]), name_rows([0, 1])
    ('row 5', 'rows 1, 2')
    """
    numbers = [row + 1 for row in rows]
    return f"row{'s' if len(numbers) > 1 else ''} {list_some(numbers)}"
