"""Compute a data frame of features from many scans, or from the rows of a data frame with masks and points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dagman.encoder.embedding import list_columns
from dagman.encoder.encoder import Encoder
from dagman.encoder.items import FeatureTable, embed_items
from dagman.encoder.pooling import Pooling
from dagman.errors import TableError
from dagman.records.names import suggest_name
from dagman.scans.pseudonyms import name_file
from dagman.store.crops import CropSpec
from dagman.tables.items import Item
from dagman.tables.table import CENTER_COLUMNS

_COLUMNS = ("scan", "patient", "mask", "label_value", *CENTER_COLUMNS)


def embed_frame(
    encoder: Encoder, scans: Iterable[str | Path] | pd.DataFrame, pooling: Pooling | None, crop: CropSpec
) -> pd.DataFrame:
    """Compute a data frame with a row for each scan or input row, in the given order, and features as columns.

    Rows that cannot be used are excluded, and listed with the reason in `frame.attrs["refused"]`.

    Args:
        encoder: The encoder.
        scans: Paths; or a data frame with the column `scan` and optionally `patient`, `mask`, `label_value`, and `center_x_mm` to
            `center_z_mm`, all columns of which are preserved.
        pooling: Stages and statistics.
        crop: Size and spacing of crops around structures and points.

    Raises:
        TableError: There are no rows, there is no column `scan`, or no row can be used.
    """
    pooling = pooling or Pooling()
    given = scans if isinstance(scans, pd.DataFrame) else pd.DataFrame({"scan": [str(path) for path in scans]})
    items = list_items(given)
    table = embed_items(encoder, items, pooling=pooling, crop=crop)
    refused = [(row.item.name, row.reason) for row in table.refused]
    if not len(table):
        raise TableError(f"none of {len(items)} scans can be embedded; the first: {refused[0][0]}: {refused[0][1]}")
    return _join(given, table, list_columns(encoder, pooling), refused)


def list_items(given: pd.DataFrame) -> list[Item]:
    """List one item for each row of a data frame, with the columns of `embed_frame`.

    Raises:
        TableError: There are no rows, there is no column `scan`, or a row is incomplete.
    """
    if "scan" not in given.columns:
        raise TableError("the data frame has no column 'scan'", do=suggest_name("scan", map(str, given.columns)))
    if not len(given):
        raise TableError("there are no scans to embed", do="Give at least one path")
    rows = given.reindex(columns=list(_COLUMNS)).to_dict("records")
    return [_read_row(index, row) for index, row in enumerate(rows)]


def _read_row(index: int, row: dict[Any, Any]) -> Item:
    present = {name: value for name, value in row.items() if not pd.isna(value)}
    if "scan" not in present:
        raise TableError("row has no scan", where=f"row {index}", do="Fill the column 'scan', or remove the row")
    path = Path(present["scan"])
    center = [float(present[name]) for name in CENTER_COLUMNS if name in present]
    if len(center) not in (0, 3):
        raise TableError("a coordinate is missing", where=f"row {index}", do=f"Fill {', '.join(CENTER_COLUMNS)}, or none of them")
    return Item(
        index=index,
        name=f"row {index} ({path.name})",
        scan=path,
        patient=str(present.get("patient", name_file(path))),
        mask=Path(present["mask"]) if "mask" in present else None,
        label_value=int(present["label_value"]) if "label_value" in present else None,
        center_mm=(center[0], center[1], center[2]) if center else None,
    )


def _join(given: pd.DataFrame, table: FeatureTable, columns: Sequence[str], refused: list[tuple[str, str]]) -> pd.DataFrame:
    kept = given.iloc[[item.index for item in table.items]]
    features = pd.DataFrame(table.values, columns=list(columns), index=kept.index)
    frame = pd.concat([kept, features], axis=1)
    frame.attrs["refused"] = refused
    return frame
