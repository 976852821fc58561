"""Write token grids of scans that are given in Python as paths, a store or a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dagman.encoder.dense.format import Number
from dagman.encoder.dense.reading import DenseStore, open_dense
from dagman.encoder.dense.writing import write_dense
from dagman.encoder.encoder import Encoder
from dagman.encoder.feature_file import write_refused
from dagman.encoder.inputs.frames import list_items
from dagman.encoder.inputs.opening import RefusedItem
from dagman.encoder.items import list_scans, list_stored
from dagman.errors import TaskError
from dagman.records.counts import count_noun
from dagman.records.sources import name_relative
from dagman.store.manifest import Store
from dagman.tables.items import Item


def fill_dense_folder(
    encoder: Encoder,
    scans: str | Path | Sequence[str] | Sequence[Path] | Store | pd.DataFrame,
    out: str | Path,
    stages: Sequence[int],
    number: Number,
) -> DenseStore:
    """Write the token grids of scans, and open them; see `Encoder.embed_dense`."""
    items, refused = _list_dense_items(scans)
    store = scans if isinstance(scans, Store) else None
    rows = list(write_dense(encoder, items, out, store=store, stages=stages, number=number)) if items else []
    refused += [(row.item.name, row.reason) for row in rows if isinstance(row, RefusedItem)]
    if rows:
        write_refused(Path(out) / "rejected.csv", refused)
    if len(rows) == sum(isinstance(row, RefusedItem) for row in rows):
        first = f"; the first: {': '.join(refused[0])}" if refused else ""
        raise TaskError(f"none of {count_noun(len(refused), 'scan')} can be embedded{first}", where=out)
    return open_dense(out)


def _list_dense_items(
    scans: str | Path | Sequence[str] | Sequence[Path] | Store | pd.DataFrame,
) -> tuple[list[Item], list[tuple[str, str]]]:
    if isinstance(scans, Store):
        return list_stored(scans), []
    if isinstance(scans, pd.DataFrame):
        return list_items(scans), []
    sources = [Path(scans)] if isinstance(scans, str | Path) else [Path(source) for source in scans]
    items, refused = list_scans(sources)
    names = name_relative([item.name for item in items], sources)
    named = [replace(item, name=name) for item, name in zip(items, names, strict=True)]
    return named, [(refusal.source, refusal.reason) for refusal in refused]
