"""Structures in label maps: their names and values, and which of them were drawn in a scan."""

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
"""Entry of a column of contoured structures: every structure was drawn in this scan."""
_VALUES = re.compile(r"\d+([,\s]+\d+)*")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A structure to segment."""

    name: str
    values: tuple[int, ...]
    "Its values in a label map; if there are several, they are merged, and predictions are written with the first."


def read_contoured(columns: Columns, name: str) -> list[frozenset[str] | None]:
    """Read the structures drawn in the mask of each row, by value or name; None where the cell is `all`.

    Entries are separated by semicolons ("1;2;7", "cord;left parotid"); values may also be separated by spaces or commas.

    Raises:
        TableError: if a cell is empty, which could mean all structures or none.
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
    """Return for each structure whether it was drawn: its name or all of its values are listed, or `contoured` is None."""
    if contoured is None:
        return (True,) * len(structures)
    return tuple(
        structure.name in contoured or all(str(value) in contoured for value in structure.values) for structure in structures
    )


def read_label_values(
    columns: Columns, mask_label: int | None, masks: Sequence[Path | None]
) -> tuple[list[int | None], list[str | int | None]]:
    """Read the structure of each row: its value in a label map, or its name or number in an RTSTRUCT or SEG.

    Args:
        columns: the table's columns.
        mask_label: the value in every mask, instead of a column `label_value`.
        masks: the mask of each row.

    Returns:
        The value per row, and the name or number per row; at most one of them is not None.

    Raises:
        TableError: if a value is not a whole number, or `mask_label` is given without a column `mask`.
    """
    if mask_label is not None and "mask" not in columns:
        raise TableError("--mask-label needs a column 'mask'", where=columns.path, do="Add the column, or omit --mask-label")
    known = {mask: holds_structures(mask) for mask in dict.fromkeys(masks) if mask is not None}
    is_dicom = [mask is not None and known[mask] for mask in masks]
    if mask_label is not None:
        return [None if dicom else mask_label for dicom in is_dicom], [mask_label if dicom else None for dicom in is_dicom]
    if "label_value" not in columns:
        return [None] * columns.rows, [None] * columns.rows
    if not any(is_dicom):
        numbers = columns.numbers("label_value")
        wrong = [row for row, number in enumerate(numbers) if number != np.round(number) and not np.isnan(number)]
        if wrong:
            do = "Write the structure's value in the mask"
            raise columns.error("label_value is not a whole number", wrong, do=do, of="label_value")
        return [None if np.isnan(number) else int(number) for number in numbers], [None] * columns.rows
    texts = columns.text("label_value")
    entries = [int(float(text)) if text and re.fullmatch(r"\d+(\.0*)?", text) else text for text in texts]
    wrong = [row for row, entry in enumerate(entries) if isinstance(entry, str) and not is_dicom[row]]
    if wrong:
        do = "Write the structure's value in the mask; names work only for RTSTRUCT and SEG files"
        raise columns.error("label_value is not a whole number", wrong, do=do, of="label_value")
    pairs = list(zip(entries, is_dicom, strict=True))
    values = [None if dicom or isinstance(entry, str) else entry for entry, dicom in pairs]
    return values, [entry if dicom else None for entry, dicom in pairs]
