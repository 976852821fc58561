"""The label maps that `--label-map` names: one file, a folder of maps called as their scans, or a column of the table."""

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
"""nnU-Net's number of a channel, which its label maps do not have."""


def give_maps(items: Sequence[Item], named: str, table: Path | None) -> list[Item]:
    """The items with the label map of each as their mask; those without one keep none.

    named: a column of `table`, where there is one; else a file, for one scan, or a folder of maps called as their scans.
    Raises TableError where it is none of these, or no scan has a map.
    """
    if table is not None:
        return _take_column(items, named, Columns(table))
    path = Path(named)
    if path.is_dir():
        return _match_files(items, path)
    if not path.is_file():
        raise TableError(
            "is neither a label map nor a folder of them", where=path, do="Give one, or a table and its column of maps"
        )
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
        own = name_file(Path(item.scan)) if isinstance(item.scan, Path) else item.scan
        matched.append(replace(item, mask=maps.get(own, maps.get(_CHANNEL.sub("", own)))))
    if all(item.mask is None for item in matched):
        what = f"holds no map named like any of {count_noun(len(items), 'scan')}"
        raise TableError(what, where=folder, do="Name each map like its scan, or give a table with a column of maps")
    return matched
