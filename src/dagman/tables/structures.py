"""What label maps hold: named structures and their values, and which of them were drawn in a scan."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dagman.tables.columns import Columns

ALL = "all"
"""In a column of contoured structures: every structure was drawn in this scan."""
_VALUES = re.compile(r"\d+([,\s]+\d+)*")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What is segmented: its name, and its values in a label map; several count as one, and the first is written."""

    name: str
    values: tuple[int, ...]


def read_contoured(columns: Columns, name: str) -> list[frozenset[str] | None]:
    """For each row the structures drawn in its mask, by value or name, or None where the cell says `all`.

    Entries stand between semicolons ("1;2;7", "cord;left parotid"); values may also stand between spaces or commas.
    Raises TableError for empty cells: they may mean all structures or none.
    """
    texts = columns.text(name)
    empty = [row for row, text in enumerate(texts) if text is None]
    if empty:
        do = f"List the structures drawn in each scan, such as 1;2;7, or write '{ALL}'"
        raise columns.error(f"column '{name}' is empty", empty, do=do)
    return [None if str(text).lower() == ALL else _split_entries(str(text)) for text in texts]


def _split_entries(text: str) -> frozenset[str]:
    entries: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        entries += re.split(r"[,\s]+", part) if _VALUES.fullmatch(part) else [part]
    return frozenset(str(int(entry)) if entry.isdigit() else entry for entry in entries)


def list_contoured(contoured: Collection[str] | None, structures: Sequence[Structure]) -> tuple[bool, ...]:
    """Whether each structure was drawn: its name is listed, or all of its values are; None: all were."""
    if contoured is None:
        return (True,) * len(structures)
    return tuple(one.name in contoured or all(str(value) in contoured for value in one.values) for one in structures)
