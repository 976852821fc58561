"""Numbers and what they count, as sentences say it."""

from __future__ import annotations


def count_noun(number: int, one: str, many: str | None = None) -> str:
    """The number with its noun, and a verb where one follows; `many` is `one` with an s unless it is given.

    >>> count_noun(1, "scan"), count_noun(0, "scan"), count_noun(2, "scan was", "scans were")
    ('1 scan', '0 scans', '2 scans were')
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"
