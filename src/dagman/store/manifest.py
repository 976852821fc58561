"""The table of a store, a row a scan, and `Store`, its reader.

Rows come from `manifest.parquet` and, so that a writer that was killed loses nothing, from what stands in `journal.jsonl`
beyond it. Nothing in a row identifies a person: the patient is a pseudonym, the source a hash.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dagman.errors import StoreError
from dagman.records.files import write_json, write_whole
from dagman.records.hashes import hash_bytes, hash_file
from dagman.records.journal import read_rows
from dagman.records.names import suggest_name
from dagman.scans.affine import Affine
from dagman.scans.scan import Modality
from dagman.store.body import Triple
from dagman.store.format import damaged_file, locate_scan, open_voxels, read_info, read_preparation
from dagman.store.preparation import Preparation, PreparedScan, Scale
from dagman.store.upkeep.checks import SharedChecks

OPEN_FILES = 256
"""Handles a reader keeps; the one used longest ago is closed."""


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One scan of a store.

    `shape`, `spacing` (mm), `affine` (4 x 4 to RAS mm, row by row) are those of the stored voxels; `crop_start` and
    `crop_stop` are the body's box in the grid before the crop; `scale` as in PreparedScan; `hu_evidence` is what the verdict
    counted (None unless CT). `checksum` and `size` (bytes) are of the scan's file.
    """

    id: str
    patient: str = field(repr=False)
    modality: Modality
    shape: Triple
    spacing: tuple[float, float, float]
    affine: tuple[float, ...] = field(repr=False)
    crop_start: Triple
    crop_stop: Triple
    scale: Scale | None
    hu_evidence: dict[str, float] | None = field(repr=False)
    content_hash: str = field(repr=False)
    source_hash: str = field(repr=False)
    checksum: str = field(repr=False)
    size: int
    patient_from: str = ""
    "As in `Series`; empty in rows from before it was kept."
    source_spacing: tuple[float, float, float] | None = None
    "Of the scan as it was read, in mm along R, A, S; None in rows from before it was kept."
    kernel: str = ""
    "Reconstruction kernel, where the files state one."

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> ManifestRow:
        """A row as the journal and the manifest hold it; keys that are not fields are left out."""
        names = {one.name for one in fields(cls)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in row.items() if key in names
        }
        return cls(**values)


# A list that may be null has no fixed size here: some releases of pyarrow write such a column and cannot read it again.
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("patient", pa.string()),
        ("patient_from", pa.string()),
        ("modality", pa.string()),
        ("shape", pa.list_(pa.int32(), 3)),
        ("spacing", pa.list_(pa.float64(), 3)),
        ("affine", pa.list_(pa.float64(), 16)),
        ("crop_start", pa.list_(pa.int32(), 3)),
        ("crop_stop", pa.list_(pa.int32(), 3)),
        ("scale", pa.list_(pa.float64())),
        ("hu_evidence", pa.string()),
        ("content_hash", pa.string()),
        ("source_hash", pa.string()),
        ("checksum", pa.string()),
        ("size", pa.int64()),
        ("source_spacing", pa.list_(pa.float64())),
        ("kernel", pa.string()),
    ]
)


_ADDED = {one.name: one.default for one in fields(ManifestRow) if one.default is not MISSING}
"""What stands for a column that a store of an earlier release lacks."""
_FOLDED = "folded.json"
"""How much of the journal the manifest holds. Not in the manifest, which depends on the scans alone, not on what came when."""
_END = 4096


def write_manifest(store: Path, rows: Iterable[ManifestRow]) -> None:
    """Write `manifest.parquet` whole, sorted by id, and note how much of the journal it holds."""
    ordered = sorted(rows, key=lambda row: row.id)
    columns = {one.name: [getattr(row, one.name) for row in ordered] for one in fields(ManifestRow)}
    columns["hu_evidence"] = [None if value is None else json.dumps(value) for value in columns["hu_evidence"]]
    path, journal = store / "manifest.parquet", store / "journal.jsonl"
    with write_whole(path) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=_SCHEMA), temporary)
    size = journal.stat().st_size if journal.exists() else 0
    write_json(store / _FOLDED, {"manifest": hash_file(path), "journal_bytes": size, "journal_end": _hash_end(journal, size)})


def read_manifest(store: Path) -> dict[str, ManifestRow]:
    """All rows by id, sorted: the manifest, then the journal's rows beyond it. Raises StoreError when it is damaged."""
    path, journal = store / "manifest.parquet", store / "journal.jsonl"
    rows: dict[str, ManifestRow] = {}
    folded = 0
    if path.exists():
        try:
            # Not pq.read_table, which loads pyarrow's data sets first.
            with _pause_collection(), pq.ParquetFile(path) as file:
                table = file.read()
                rows = {row.id: row for row in _build_rows(table)}
            folded = _count_folded(store)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            do = "Delete it and run dagman prepare again; the journal holds its rows"
            raise StoreError(f"cannot be read ({_name_cause(error, path)})", where=path, do=do) from error
    for value in read_rows(journal, start=folded):
        if "checksum" in value:
            rows[value["id"]] = ManifestRow.from_json(value)
        elif value.get("dropped"):
            rows.pop(value["id"], None)
    return dict(sorted(rows.items()))


@contextlib.contextmanager
def _pause_collection() -> Iterator[None]:
    """No search for garbage meanwhile: among 100,000 new rows there is none, and looking took two thirds of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _build_rows(table: pa.Table) -> Iterable[ManifestRow]:
    """Rows of a manifest, a column at a time: row by row 100,000 took two seconds."""
    columns: list[list[Any]] = []
    for one in _SCHEMA:
        if one.name not in table.column_names and one.name in _ADDED:
            columns.append([_ADDED[one.name]] * table.num_rows)
            continue
        column = table.column(one.name).combine_chunks()
        if pa.types.is_fixed_size_list(one.type):
            columns.append(list(map(tuple, np.asarray(column.flatten()).reshape(-1, one.type.list_size).tolist())))
        elif one.name == "hu_evidence":
            columns.append(json.loads(f"[{','.join(text or 'null' for text in column.to_pylist())}]"))
        else:
            columns.append([tuple(value) if isinstance(value, list) else value for value in column.to_pylist()])
    for values in zip(*columns, strict=True):
        row = object.__new__(ManifestRow)
        # As its __init__ does, in a quarter of the time.
        row.__dict__.update(zip(_SCHEMA.names, values, strict=True))
        yield row


def _count_folded(store: Path) -> int:
    """Bytes of the journal that the manifest holds; 0 where either was written by another hand since, or by an earlier release."""
    journal = store / "journal.jsonl"
    try:
        noted = json.loads((store / _FOLDED).read_text(encoding="utf-8"))
        size = int(noted["journal_bytes"])
        same = noted["manifest"] == hash_file(store / "manifest.parquet") and noted["journal_end"] == _hash_end(journal, size)
        return size if same and journal.stat().st_size >= size else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _hash_end(path: Path, size: int) -> str:
    if not size:
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, size - _END))
        return hash_bytes(file.read(min(size, _END)))


def _name_cause(error: Exception, path: Path) -> str:
    """The first line of another library's error, without the folder that the message carries already."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".removesuffix(": ").replace(str(path), path.name)


class Store:
    """A store, read lazily; it can be pickled and sent to worker processes.

    Raises StoreError when `path` is not a store, of another version, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = read_info(self.path)
        self._handles: dict[str, blosc2.NDArray] = {}
        self._checked: set[str] = set()
        self._shared: SharedChecks | None = None

    @property
    def preparation(self) -> Preparation:
        """How its scans were prepared."""
        return read_preparation(self.info, self.path)

    @cached_property
    def rows(self) -> tuple[ManifestRow, ...]:
        """One row a scan, sorted by id."""
        return tuple(self._rows_by_id.values())

    @cached_property
    def _rows_by_id(self) -> dict[str, ManifestRow]:
        return read_manifest(self.path)

    def row(self, scan_id: str) -> ManifestRow:
        """The row of a scan; raises StoreError naming the nearest id."""
        try:
            return self._rows_by_id[scan_id]
        except KeyError:
            do = suggest_name(scan_id, self._rows_by_id) if len(self.rows) < 10_000 else "See manifest.parquet"
            raise StoreError(f"holds no scan {scan_id!r}", where=self.path, do=do) from None

    def read(self, scan_id: str) -> PreparedScan:
        """A whole scan, as `prepare_scan` gave it; its source is its id."""
        row = self.row(scan_id)
        return PreparedScan(
            voxels=self.crop(scan_id, (0, 0, 0), row.shape),
            affine=Affine(np.reshape(row.affine, (4, 4))),
            modality=row.modality,
            crop_box=(row.crop_start, row.crop_stop),
            scale=row.scale,
            content_hash=row.content_hash,
            patient=row.patient,
            source=row.id,
        )

    def share_checks(self, checks: SharedChecks) -> None:
        """Take over what other processes have checked, and tell them what this one has."""
        self._shared = checks

    def crop(self, scan_id: str, start: Sequence[int], size: Sequence[int]) -> NDArray[np.int16]:
        """int16 voxels X Y Z of a box of a scan; only the blocks it meets are read.

        Raises ValueError when the box does not lie inside the scan, StoreError when the file is missing or damaged.
        """
        handle = self._open(scan_id)
        stop = tuple(first + length for first, length in zip(start, size, strict=True))
        if not all(0 <= first < last <= extent for first, last, extent in zip(start, stop, handle.shape, strict=True)):
            raise ValueError(f"a box of {tuple(size)} at {tuple(start)} does not lie in scan {scan_id} of shape {handle.shape}")
        try:
            voxels: NDArray[np.int16] = handle[tuple(slice(first, last) for first, last in zip(start, stop, strict=True))]
        except (RuntimeError, ValueError) as error:
            raise damaged_file(locate_scan(self.path, scan_id)) from error
        return voxels

    def _open(self, scan_id: str) -> blosc2.NDArray:
        handle = self._handles.pop(scan_id, None)
        if handle is None:
            row = self.row(scan_id)
            self._check(row)
            handle = open_voxels(locate_scan(self.path, scan_id))
            if handle.shape != row.shape:
                raise damaged_file(locate_scan(self.path, scan_id))
            if len(self._handles) >= OPEN_FILES:
                del self._handles[next(iter(self._handles))]
        self._handles[scan_id] = handle
        return handle

    def _check(self, row: ManifestRow) -> None:
        """Compare a scan's file with its checksum: decompression notices only one flipped bit in five.

        Once per process, or once for all processes that share their checks.
        """
        path = locate_scan(self.path, row.id)
        if row.id in self._checked or not path.is_file():
            return
        if self._shared is None or not self._shared.holds(row.id, path):
            if path.stat().st_size != row.size or hash_file(path) != row.checksum:
                raise damaged_file(path)
            if self._shared is not None:
                self._shared.add(row.id, path)
        self._checked.add(row.id)

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        # An open file cannot travel to another process; each opens its own.
        return {**self.__dict__, "_handles": {}}

    def __repr__(self) -> str:
        return f"Store({len(self.rows)} scans, {self.info['spacing']:g} mm)"
