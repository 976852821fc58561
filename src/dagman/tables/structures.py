"""What label maps hold: named structures and their values, and which of them were drawn in a scan."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dagman.errors import TableError
from dagman.scans.structures import holds_structures
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


def read_label_values(
    columns: Columns, mask_label: int | None, masks: Sequence[Path | None]
) -> tuple[list[int | None], list[str | int | None]]:
    """For each row the structure's value in its label map, and its name or number where the mask is an RTSTRUCT or SEG.

    mask_label: the value in every mask, in place of a column `label_value`. Raises TableError for a value that cannot be meant.
    """
    if mask_label is not None and "mask" not in columns:
        raise TableError("a mask label needs a column 'mask'", where=columns.path, do="Add the column, or omit --mask-label")
    drawn = {mask: holds_structures(mask) for mask in dict.fromkeys(masks) if mask is not None}
    is_drawn = [mask is not None and drawn[mask] for mask in masks]
    if mask_label is not None:
        return [None if one else mask_label for one in is_drawn], [mask_label if one else None for one in is_drawn]
    if "label_value" not in columns:
        return [None] * columns.rows, [None] * columns.rows
    if not any(is_drawn):
        numbers = columns.numbers("label_value")
        wrong = [row for row, number in enumerate(numbers) if number != np.round(number) and not np.isnan(number)]
        if wrong:
            do = "Write the structure's value in the mask"
            raise columns.error("label_value is not a whole number", wrong, do=do, of="label_value")
        return [None if np.isnan(number) else int(number) for number in numbers], [None] * columns.rows
    texts = columns.text("label_value")
    meant = [int(float(text)) if text and re.fullmatch(r"\d+(\.0*)?", text) else text for text in texts]
    wrong = [row for row, value in enumerate(meant) if isinstance(value, str) and not is_drawn[row]]
    if wrong:
        do = "Write the structure's value in the mask; names work only for RTSTRUCT and SEG files"
        raise columns.error("label_value is not a whole number", wrong, do=do, of="label_value")
    pairs = list(zip(meant, is_drawn, strict=True))
    return [None if one or isinstance(value, str) else value for value, one in pairs], [
        value if one else None for value, one in pairs
    ]
