"""Compute a data frame with one row per label, from the label map of a scan or of each row of a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dagman.encoder.dense.labels import LabelRow, pool_label_map, stream_labels
from dagman.encoder.embedding import list_columns
from dagman.encoder.encoder import Encoder
from dagman.encoder.inputs.frames import list_items
from dagman.encoder.inputs.opening import OpenedScan, RefusedItem
from dagman.encoder.pooling import Pooling
from dagman.encoder.reader import ScanLike
from dagman.errors import ScanError, TableError
from dagman.records.names import suggest_name
from dagman.scans.reading import read_scan
from dagman.scans.scan import Scan
from dagman.tables.items import Item
from dagman.tables.labels import read_label_names

LabelMap = str | Path | Scan | NDArray[np.integer]
"""A file, a Scan or an array on the grid of the scan; for a data frame, the name of its column of files."""
LabelNames = Mapping[int, str] | str | Path | None
"""Names by value, or a CSV with the columns id and name."""
_SIZES = ("label_value", "label_name", "voxels", "volume_mm3")


def embed_labels(
    encoder: Encoder, scan: ScanLike | pd.DataFrame, label_map: LabelMap, labels: LabelNames, pooling: Pooling | None
) -> pd.DataFrame:
    """Compute a row for each label: `label_value`, `label_name`, `voxels`, `volume_mm3`, then the features.

    For a data frame, its own columns come first, the index of its rows is preserved, and labels that cannot be used are listed in
    `frame.attrs["refused"]`.

    Raises:
        DagmanError: The scan or its map cannot be used, or no label can be used.
    """
    pooling = pooling or Pooling()
    names = labels if isinstance(labels, Mapping) else read_label_names(labels) if labels else {}
    pooled: list[LabelRow | RefusedItem]
    if isinstance(scan, pd.DataFrame):
        pooled = _embed_rows(encoder, scan, label_map, names, pooling)
    elif isinstance(scan, str | Path) and isinstance(label_map, str | Path):
        item = Item(index=0, name=str(scan), scan=Path(scan), patient="", mask=Path(label_map))
        pooled = list(stream_labels(encoder, [item], pooling=pooling, names=names))
    else:
        opened = OpenedScan.take(encoder.reader, scan)
        pooled = pool_label_map(encoder, opened, _read_map(label_map, opened.scan), pooling=pooling, names=names)
    rows = [row for row in pooled if isinstance(row, LabelRow)]
    refused = [(row.item.name, row.reason) for row in pooled if isinstance(row, RefusedItem)]
    if not rows:
        raise TableError(f"no label can be embedded; the first: {': '.join(refused[0])}")
    frame = _build_frame(rows, list_columns(encoder, pooling))
    if isinstance(scan, pd.DataFrame):
        kept = scan.iloc[[row.item.index for row in rows]]
        frame = pd.concat([kept.drop(columns=[name for name in _SIZES if name in kept]), frame.set_index(kept.index)], axis=1)
    frame.attrs["refused"] = refused
    return frame


def _embed_rows(
    encoder: Encoder, given: pd.DataFrame, label_map: LabelMap, names: Mapping[int, str], pooling: Pooling
) -> list[LabelRow | RefusedItem]:
    if not isinstance(label_map, str) or label_map not in given.columns:
        what = f"the data frame has no column {label_map!r}" if isinstance(label_map, str) else "the label map is not a column"
        raise TableError(what, do=suggest_name(str(label_map), map(str, given.columns)))
    paths = [None if pd.isna(value) else Path(value) for value in given[label_map]]
    items = [replace(item, mask=paths[item.index], center_mm=None) for item in list_items(given)]
    rows = list(stream_labels(encoder, items, pooling=pooling, names=names))
    # Restore the order of the data frame, as rows are grouped by scan for reading.
    return sorted(rows, key=lambda row: row.item.index)


def _read_map(label_map: LabelMap, scan: Scan) -> Scan:
    if isinstance(label_map, Scan):
        return label_map
    if not isinstance(label_map, np.ndarray):
        return read_scan(label_map, labels=True)
    if label_map.shape != scan.shape:
        shapes = [" x ".join(map(str, shape)) for shape in (label_map.shape, scan.shape)]
        raise ScanError(f"the label map has shape {shapes[0]}, the scan {shapes[1]}", do="Give it on the scan's own grid")
    return replace(scan, voxels=label_map.astype(np.float32), modality="other")


def _build_frame(rows: Sequence[LabelRow], columns: Sequence[str]) -> pd.DataFrame:
    sizes = pd.DataFrame([(row.item.label_value, row.name, row.voxels, row.volume_mm3) for row in rows], columns=list(_SIZES))
    return pd.concat([sizes, pd.DataFrame(np.stack([row.values for row in rows]), columns=list(columns))], axis=1)
