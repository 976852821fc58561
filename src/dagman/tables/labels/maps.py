"""Turns label maps into items: one item per named structure of each map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dagman.errors import DagmanError, TableError
from dagman.notes import warn
from dagman.records.counts import list_some
from dagman.tables.items import Item, read_mask
from dagman.tables.table import Table

MINIMUM_VOXELS = 20
"""Structures with fewer voxels are fragments rather than organs. [ours]"""


def expand_label_maps(table: Table, names: dict[int, str], *, minimum_voxels: int = MINIMUM_VOXELS) -> Table:
    """Return a table with one item per named structure in each mask; an item's label is the name of its structure.

    Args:
        table: items with masks.
        names: names of the label values; other values are excluded and noted.
        minimum_voxels: structures with fewer voxels are excluded and noted.

    Raises:
        TableError: if the table has no masks, or fewer than two kinds of structure remain.
    """
    if all(item.mask is None for item in table.items):
        raise TableError("has no masks", where=table.path, do="Add a column 'mask' with label maps")
    items: list[Item] = []
    small: list[str] = []
    unnamed: set[int] = set()
    notes = list(table.notes)
    first_rows: dict[Path, Item] = {}
    for item in table.items:
        if item.mask is not None:
            first_rows.setdefault(item.mask, item)
    for item in first_rows.values():
        try:
            labels = np.rint(read_mask(item).voxels)
        except DagmanError as error:
            notes.append(warn(f"excluded {item.name}: {error}"))
            continue
        for value, count in zip(*np.unique(labels[labels != 0].astype(np.int64), return_counts=True), strict=True):
            name = names.get(int(value))
            if name is None:
                unnamed.add(int(value))
            elif count < minimum_voxels:
                small.append(f"{item.name}:{name} ({count})")
            else:
                items.append(replace(item, index=0, name=f"{item.name}:{name}", label_value=int(value), label=name))
    if unnamed:
        notes.append(warn(f"label values without a name are excluded: {list_some(sorted(unnamed))}"))
    if small:
        notes.append(warn(f"structures of fewer than {minimum_voxels} voxels are excluded: {list_some(small)}"))
    items.sort(key=lambda item: item.name)
    classes = tuple(sorted({str(item.label) for item in items}))
    if not items:
        raise TableError("its label maps contain no usable structure", where=table.path, do="Check --labels and --minimum-voxels")
    if len(classes) < 2:
        raise TableError(
            f"its label maps contain only one kind of structure ('{classes[0]}')",
            where=table.path,
            do="Give maps with several kinds",
        )
    numbered = tuple(replace(item, index=index) for index, item in enumerate(items))
    return replace(table, items=numbered, classes=classes, notes=tuple(notes))
