"""Resolves `--label-map` to one label map per scan: a file, a folder of maps named like their scans, or a table column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dagman.errors import TableError
from dagman.records.counts import count_noun, list_some
from dagman.scans.pseudonyms import name_file
from dagman.tables.columns import Columns
from dagman.tables.items import Item
from dagman.tables.paths import refuse_drives, tidy_path

_CHANNEL = re.compile(r"_\d{4}$")
"""nnU-Net's channel number, which images have in their names and label maps do not."""


def give_maps(items: Sequence[Item], named: str, table: Path | None) -> list[Item]:
    """Return the items with their label maps as masks; an item without a map gets None.

    Args:
        items: one item per scan.
        named: the value of `--label-map`. With a table: one of its columns. Otherwise: a label map, for a single scan, or a
            folder of maps named like their scans.
        table: the table that lists the scans, if there is one.

    Raises:
        TableError: if `named` is none of these, or no scan has a map.
    """
    if table is not None:
        return _take_column(items, named, Columns(table))
    path = Path(named)
    if path.is_dir():
        return _match_files(items, path)
    if not path.is_file():
        raise TableError("is neither a label map nor a folder of them", where=path, do="Give one, or a table with a column of maps")
    if len(items) != 1:
        what = f"is one label map, but {count_noun(len(items), 'scan')} were given"
        raise TableError(what, where=path, do="Give a folder of maps named like their scans, or a table with a column of maps")
    return [replace(items[0], mask=path)]


def _take_column(items: Sequence[Item], name: str, columns: Columns) -> list[Item]:
    texts = columns.text(name)
    refuse_drives(texts, columns.path)
    root = columns.path.parent
    paths = [root / tidy_path(text, root) if text else None for text in texts]
    absent = sorted({str(path) for path in paths if path is not None and not path.exists()})
    if absent:
        what = f"{count_noun(len(absent), 'label map')} of column '{name}' cannot be found: {list_some(absent, 5)}"
        raise TableError(
            what, where=columns.path, do="Paths are relative to the table's folder; correct them, or empty these cells"
        )
    return [replace(item, mask=paths[item.index]) for item in items]


def _match_files(items: Sequence[Item], folder: Path) -> list[Item]:
    maps = {name_file(path): path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")}
    matched = []
    for item in items:
        name = name_file(Path(item.scan)) if isinstance(item.scan, Path) else item.scan
        matched.append(replace(item, mask=maps.get(name, maps.get(_CHANNEL.sub("", name)))))
    if all(item.mask is None for item in matched):
        what = f"holds no map named like any of {count_noun(len(items), 'scan')}"
        raise TableError(what, where=folder, do="Name each map like its scan, or give a table with a column of maps")
    return matched
