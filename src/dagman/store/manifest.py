"""The manifest of a store, with one row per scan, and the reader `Store`.

Rows come from `manifest.parquet`, and from later rows of `journal.jsonl`, so that nothing is lost if a writer is killed. No row
identifies a person: the patient is a pseudonym, the source a hash.
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
"""Number of files that a reader keeps open; the least recently used one is closed."""


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One scan of a store."""

    id: str
    patient: str = field(repr=False)
    "A pseudonym."
    modality: Modality
    shape: Triple
    "Of the stored voxels, like `spacing` (mm) and `affine` (4 x 4 to RAS mm, row by row)."
    spacing: tuple[float, float, float]
    affine: tuple[float, ...] = field(repr=False)
    crop_start: Triple
    "Start of the body's box in the grid before the crop; `crop_stop` is its end."
    crop_stop: Triple
    scale: Scale | None
    "As in `PreparedScan`."
    hu_evidence: dict[str, float] | None = field(repr=False)
    "The distribution of values on which the verdict was based; None except for CT."
    content_hash: str = field(repr=False)
    source_hash: str = field(repr=False)
    checksum: str = field(repr=False)
    "Of the scan's file, like `size` (bytes)."
    size: int
    patient_from: str = ""
    "As in `Series`; empty in rows of earlier versions."
    source_spacing: tuple[float, float, float] | None = None
    "Spacing of the original scan in mm along R, A, S; None in rows of earlier versions."
    kernel: str = ""
    "Reconstruction kernel, if the files state one."

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> ManifestRow:
        """Create a row from a row of the journal; keys that are not fields are ignored."""
        names = {column.name for column in fields(cls)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in row.items() if key in names
        }
        return cls(**values)


# Lists that may be null have no fixed size, since some releases of pyarrow cannot read such a column after writing it.
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


_DEFAULTS = {column.name: column.default for column in fields(ManifestRow) if column.default is not MISSING}
"""Values of columns that a store of an earlier version lacks."""
_FOLDED = "folded.json"
"""Records how much of the journal is in the manifest. It is a separate file, so that the manifest depends only on the scans."""
_END_BYTES = 4096


def write_manifest(store: Path, rows: Iterable[ManifestRow]) -> None:
    """Write `manifest.parquet` atomically, sorted by id, and record how much of the journal it includes."""
    ordered = sorted(rows, key=lambda row: row.id)
    columns = {column.name: [getattr(row, column.name) for row in ordered] for column in fields(ManifestRow)}
    columns["hu_evidence"] = [None if value is None else json.dumps(value) for value in columns["hu_evidence"]]
    path, journal = store / "manifest.parquet", store / "journal.jsonl"
    with write_whole(path) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=_SCHEMA), temporary)
    size = journal.stat().st_size if journal.exists() else 0
    write_json(store / _FOLDED, {"manifest": hash_file(path), "journal_bytes": size, "journal_end": _hash_end(journal, size)})


def read_manifest(store: Path) -> dict[str, ManifestRow]:
    """Read all rows, sorted by id, from the manifest and the later rows of the journal; raises StoreError if it is damaged."""
    path, journal = store / "manifest.parquet", store / "journal.jsonl"
    rows: dict[str, ManifestRow] = {}
    folded = 0
    if path.exists():
        try:
            # Not pq.read_table, which imports pyarrow.dataset first.
            with _pause_collection(), pq.ParquetFile(path) as file:
                table = file.read()
                rows = {row.id: row for row in _build_rows(table)}
            folded = _count_folded(store)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            do = "Delete it and run dagman prepare again; the journal has its rows"
            raise StoreError(f"cannot be read ({_name_cause(error, path)})", where=path, do=do) from error
    for value in read_rows(journal, start=folded):
        if "checksum" in value:
            rows[value["id"]] = ManifestRow.from_json(value)
        elif value.get("dropped"):
            rows.pop(value["id"], None)
    return dict(sorted(rows.items()))


@contextlib.contextmanager
def _pause_collection() -> Iterator[None]:
    """Switch off garbage collection, which finds nothing among 100,000 new rows and took two thirds of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _build_rows(table: pa.Table) -> Iterable[ManifestRow]:
    """Build the rows of a manifest column by column, since 100,000 rows took two seconds row by row."""
    columns: list[list[Any]] = []
    for schema in _SCHEMA:
        if schema.name not in table.column_names and schema.name in _DEFAULTS:
            columns.append([_DEFAULTS[schema.name]] * table.num_rows)
            continue
        column = table.column(schema.name).combine_chunks()
        if pa.types.is_fixed_size_list(schema.type):
            columns.append(list(map(tuple, np.asarray(column.flatten()).reshape(-1, schema.type.list_size).tolist())))
        elif schema.name == "hu_evidence":
            columns.append(json.loads(f"[{','.join(text or 'null' for text in column.to_pylist())}]"))
        else:
            columns.append([tuple(value) if isinstance(value, list) else value for value in column.to_pylist()])
    for values in zip(*columns, strict=True):
        row = object.__new__(ManifestRow)
        # Equivalent to calling __init__, in a quarter of the time.
        row.__dict__.update(zip(_SCHEMA.names, values, strict=True))
        yield row


def _count_folded(store: Path) -> int:
    """Return the bytes of the journal that are in the manifest; 0 if either was changed since, or by an earlier version."""
    journal = store / "journal.jsonl"
    try:
        record = json.loads((store / _FOLDED).read_text(encoding="utf-8"))
        size = int(record["journal_bytes"])
        is_same = record["manifest"] == hash_file(store / "manifest.parquet") and record["journal_end"] == _hash_end(journal, size)
        return size if is_same and journal.stat().st_size >= size else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _hash_end(path: Path, size: int) -> str:
    if not size:
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, size - _END_BYTES))
        return hash_bytes(file.read(min(size, _END_BYTES)))


def _name_cause(error: Exception, path: Path) -> str:
    """Return the first line of another library's error, without the folder, which the message names already."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".removesuffix(": ").replace(str(path), path.name)


class Store:
    """Reads a store lazily; it can be pickled and sent to worker processes.

    Raises:
        StoreError: if `path` is not a store, has a different format, or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = read_info(self.path)
        self._handles: dict[str, blosc2.NDArray] = {}
        self._checked: set[str] = set()
        self._shared: SharedChecks | None = None

    @property
    def preparation(self) -> Preparation:
        """The settings with which its scans were prepared."""
        return read_preparation(self.info, self.path)

    @cached_property
    def rows(self) -> tuple[ManifestRow, ...]:
        """One row per scan, sorted by id."""
        return tuple(self._rows_by_id.values())

    @cached_property
    def _rows_by_id(self) -> dict[str, ManifestRow]:
        return read_manifest(self.path)

    def row(self, scan_id: str) -> ManifestRow:
        """Return the row of a scan; raises StoreError with the most similar id if there is none."""
        try:
            return self._rows_by_id[scan_id]
        except KeyError:
            do = suggest_name(scan_id, self._rows_by_id) if len(self.rows) < 10_000 else "See manifest.parquet"
            raise StoreError(f"holds no scan {scan_id!r}", where=self.path, do=do) from None

    def read(self, scan_id: str) -> PreparedScan:
        """Read a whole scan as `prepare_scan` returned it, with its id as source."""
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
        """Share with other processes which scans have been checked, so that each is checked only once."""
        self._shared = checks

    def crop(self, scan_id: str, start: Sequence[int], size: Sequence[int]) -> NDArray[np.int16]:
        """Read a box of a scan (X Y Z int16); only the blocks that it touches are read.

        Raises:
            ValueError: if the box does not lie inside the scan.
            StoreError: if the file is missing or damaged.
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
        row = self.row(scan_id)
        handle = self._handles.pop(scan_id, None)
        if handle is not None:
            self._check_length(row)
        else:
            self._check(row)
            handle = open_voxels(locate_scan(self.path, scan_id))
            if handle.shape != row.shape:
                raise damaged_file(locate_scan(self.path, scan_id))
            if len(self._handles) >= OPEN_FILES:
                del self._handles[next(iter(self._handles))]
        self._handles[scan_id] = handle
        return handle

    def _check_length(self, row: ManifestRow) -> None:
        """Check that a mapped file was not shortened: reading past its end would kill the process with SIGBUS, not an exception."""
        path = locate_scan(self.path, row.id)
        try:
            length = path.stat().st_size
        except OSError:
            # The pages of a deleted file remain readable as long as it is mapped.
            return
        if length != row.size:
            raise damaged_file(path)

    def _check(self, row: ManifestRow) -> None:
        """Compare a scan's file with its checksum, since decompression detects only one flipped bit in five.

        This is done once per process, or once for all processes that share their checks.
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
        # Open files cannot be sent to another process; each process opens them itself.
        return {**self.__dict__, "_handles": {}}

    def __repr__(self) -> str:
        return f"Store({len(self.rows)} scans, {self.info['spacing']:g} mm)"
