"""Write and read feature files: Parquet with one row per item or label, and the provenance in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dagman.encoder.encoder import Encoder
from dagman.encoder.items import FeatureRow, RefusedItem
from dagman.encoder.pooling import Pooling
from dagman.errors import TableError, TaskError
from dagman.records.counts import count_noun
from dagman.records.csv_file import protect_cell, write_csv
from dagman.records.files import write_whole
from dagman.records.provenance import hide_path
from dagman.store.crops import CropSpec

FORMAT = 1
ROWS_AT_ONCE = 64
"""Rows per row group; this is the number of rows in memory while a cohort is written."""
_KEY = b"dagman"


@dataclass(frozen=True)
class _Field:
    """A column other than the features: its name, its type, and a function that reads its value from a row."""

    name: str
    kind: pa.DataType
    read: Callable[[Any], Any]


_ITEM_FIELDS = (
    _Field("id", pa.string(), lambda row: row.item.name),
    _Field("scan", pa.string(), lambda row: hide_path(str(row.item.scan)) if isinstance(row.item.scan, Path) else row.item.scan),
    _Field("patient", pa.string(), lambda row: row.item.patient),
    _Field("label_value", pa.int64(), lambda row: row.item.label_value),
    _Field("content_hash", pa.string(), lambda row: row.content_hash),
)
_LABEL_FIELDS = (
    _Field("row", pa.int64(), lambda row: row.item.index),
    _Field("label_name", pa.string(), lambda row: row.name),
    _Field("voxels", pa.int64(), lambda row: row.voxels),
    _Field("volume_mm3", pa.float64(), lambda row: row.volume_mm3),
)
_SEEN = "seen_in_pretraining"
"""The last column before the features."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureFile:
    """Contents of a feature file.

    Attributes:
        items: Columns that describe the rows, by name.
        values: Features, N x C.
        columns: Names of the C features.
        provenance: Version of dagman, encoder and settings.
    """

    items: dict[str, list[Any]] = field(repr=False)
    values: NDArray[np.float32] = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)
    provenance: dict[str, Any]


def write_features(
    path: str | Path,
    rows: Iterable[FeatureRow | RefusedItem],
    encoder: Encoder,
    columns: Sequence[str],
    settings: dict[str, Any],
    refused: list[RefusedItem],
    *,
    by_label: bool = False,
) -> int:
    """Write rows as they arrive, and return their number.

    The provenance (version of dagman, digest and description of the encoder, `settings`) is stored in the schema's metadata. A path
    ending in .csv is written as CSV, without provenance.

    Args:
        path: File to write.
        rows: Rows and rejected items.
        encoder: The encoder.
        columns: Names of the features.
        settings: Settings for the provenance.
        refused: List to which rejected items are appended.
        by_label: Whether rows are those of `stream_labels`; their names and sizes are then written, too.

    Raises:
        TaskError: There are no rows; an existing file is not changed.
    """
    from dagman import __version__

    provenance = {
        "format": FORMAT,
        "dagman": __version__,
        "encoder": {"source": encoder.source, "digest": encoder.digest, "what": encoder.describe(), "precision": encoder.precision},
        "settings": settings,
    }
    seen = set(encoder.config.scans_seen)
    fields = [*_ITEM_FIELDS, *(_LABEL_FIELDS if by_label else ())]
    fields.append(_Field(_SEEN, pa.bool_(), lambda row: row.content_hash in seen))
    kinds = [*((column.name, column.kind) for column in fields), *((name, pa.float32()) for name in columns)]
    schema = pa.schema(kinds, metadata={_KEY: json.dumps(provenance, default=str).encode()})
    count = 0
    is_csv = Path(path).suffix.lower() == ".csv"
    open_writer = pa.csv.CSVWriter if is_csv else pq.ParquetWriter
    with write_whole(path) as temporary, open_writer(temporary, schema) as writer:
        for group in _group_rows(rows, refused):
            table = _build_table(group, fields, schema)
            writer.write_table(_protect_text(table) if is_csv else table)
            count += len(group)
        if not count:
            first = f"; the first: {refused[0].item.name}: {refused[0].reason}" if refused else ""
            raise TaskError(f"none of {count_noun(len(refused), 'item')} can be embedded{first}", where=path)
    return count


def write_refused(path: str | Path, refused: Sequence[tuple[str, str]]) -> None:
    """Write (source, reason) rows as CSV; an existing file is replaced, even if there are no rows."""
    write_csv(path, ["source", "reason"], refused)


def read_features(path: str | Path) -> FeatureFile:
    """Read a file that `write_features` wrote.

    Raises:
        TableError: The file does not exist, or is not a feature file.
    """
    try:
        table = pq.read_table(path)
        provenance = json.loads((table.schema.metadata or {})[_KEY])
        names = table.column_names[: table.column_names.index(_SEEN) + 1]
    except FileNotFoundError:
        raise TableError("does not exist", where=path, do="Run dagman embed") from None
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise TableError(f"is not a feature file of dagman ({error})", where=path, do="Run dagman embed") from None
    columns = tuple(table.column_names[len(names) :])
    values = np.stack([table[name].to_numpy() for name in columns], axis=1).astype(np.float32)
    items = {name: table[name].to_pylist() for name in names}
    return FeatureFile(items=items, values=values, columns=columns, provenance=provenance)


def summarise_features(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the provenance of a feature file and count its rows, scans, patients and features, without loading the features.

    Raises:
        TableError: The file is not a feature file.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            provenance = json.loads((file.schema_arrow.metadata or {})[_KEY])
            first = names.index(_SEEN) + 1
            described = [name for name in ("patient", "scan", "label_name") if name in names]
            table = file.read(columns=[*described, _SEEN])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise TableError(f"is not a feature file of dagman ({error})", where=path, do="Run dagman embed") from None
    counts = {
        "rows": table.num_rows,
        "scans": len(table["scan"].unique()),
        "patients": len(table["patient"].unique()),
        "rows_seen_in_pretraining": int(np.sum(table[_SEEN].to_pylist())),
        "features": len(names) - first,
        "columns": [*names[:first], f"{names[first]} to {names[-1]}"],
    }
    if "label_name" in described:
        counts["labels"] = sorted(str(name) for name in table["label_name"].unique().to_pylist() if name is not None)
    return provenance, counts


def describe_pooling(pooling: Pooling, crop: CropSpec) -> dict[str, Any]:
    """Describe pooling and crops for the provenance; None for a crop means that it was chosen by the sizes of structures."""
    return {"stages": list(pooling.stages), "pools": list(pooling.pools), "crop_mm": crop.mm, "crop_spacing_mm": crop.spacing}


def _group_rows(rows: Iterable[FeatureRow | RefusedItem], refused: list[RefusedItem]) -> Iterator[list[FeatureRow]]:
    group: list[FeatureRow] = []
    for row in rows:
        if isinstance(row, RefusedItem):
            refused.append(row)
            continue
        if not np.isfinite(row.values).all():
            refused.append(RefusedItem(item=row.item, reason="its features are not finite"))
            continue
        group.append(row)
        if len(group) == ROWS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _protect_text(table: pa.Table) -> pa.Table:
    """Protect text columns against interpretation as formulas in CSV; see `records.csv_file`."""
    for index, column in enumerate(table.schema):
        if column.type == pa.string():
            texts = [protect_cell(text) for text in table[column.name].to_pylist()]
            table = table.set_column(index, column.name, pa.array(texts, type=column.type))
    return table


def _build_table(group: Sequence[FeatureRow], fields: Sequence[_Field], schema: pa.Schema) -> pa.Table:
    values = np.stack([row.values for row in group])
    arrays = [pa.array([column.read(row) for row in group], type=column.kind) for column in fields]
    return pa.Table.from_arrays([*arrays, *(pa.array(column) for column in values.T)], schema=schema)
