"""Features on disk: Parquet, a row an item or label, with how they came to be in the file's metadata. Its one writer and reader."""

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
"""Rows of a row group: what is held in memory while a cohort is written."""
_KEY = b"dagman"


@dataclass(frozen=True)
class _Field:
    """A column beside the features: its name, its type, and what it holds of a row."""

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
    """What a feature file holds: `values` N x C with their `columns`, the `items` columns by name, and the `provenance`."""

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
    """Write rows as they come, and return how many; what was refused is appended to `refused`.

    by_label: they are those of `stream_labels`, and their names and sizes are written, too.

    The provenance (dagman's version, the encoder's digest and configuration, `settings`) lies in the schema's metadata.
    A path that ends in .csv is written as CSV, which has no place for it.
    Raises TaskError, and leaves an earlier file as it is, when there is nothing to write.
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
    kinds = [*((one.name, one.kind) for one in fields), *((name, pa.float32()) for name in columns)]
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
    """Write (source, reason) rows as CSV; an earlier file is replaced, also by an empty list."""
    write_csv(path, ["source", "reason"], refused)


def read_features(path: str | Path) -> FeatureFile:
    """Read what `write_features` wrote; raises TableError when it is something else."""
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
    """The provenance of a feature file, and counts of what it holds, without its features; raises as `read_features`."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            provenance = json.loads((file.schema_arrow.metadata or {})[_KEY])
            first = names.index(_SEEN) + 1
            kept = [name for name in ("patient", "scan", "label_name") if name in names]
            held = file.read(columns=[*kept, _SEEN])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise TableError(f"is not a feature file of dagman ({error})", where=path, do="Run dagman embed") from None
    counts = {
        "rows": held.num_rows,
        "scans": len(held["scan"].unique()),
        "patients": len(held["patient"].unique()),
        "rows_seen_in_pretraining": int(np.sum(held[_SEEN].to_pylist())),
        "features": len(names) - first,
        "columns": [*names[:first], f"{names[first]} to {names[-1]}"],
    }
    if "label_name" in kept:
        counts["labels"] = sorted(str(name) for name in held["label_name"].unique().to_pylist() if name is not None)
    return provenance, counts


def describe_pooling(pooling: Pooling, crop: CropSpec) -> dict[str, Any]:
    """Settings for the provenance; None for the crop means: chosen from the structures' sizes."""
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
    """The table with its text as CSV holds it; see `records.csv_file`."""
    for place, one in enumerate(table.schema):
        if one.type == pa.string():
            texts = [protect_cell(text) for text in table[one.name].to_pylist()]
            table = table.set_column(place, one.name, pa.array(texts, type=one.type))
    return table


def _build_table(group: Sequence[FeatureRow], fields: Sequence[_Field], schema: pa.Schema) -> pa.Table:
    values = np.stack([row.values for row in group])
    arrays = [pa.array([one.read(row) for row in group], type=one.kind) for one in fields]
    return pa.Table.from_arrays([*arrays, *(pa.array(column) for column in values.T)], schema=schema)
