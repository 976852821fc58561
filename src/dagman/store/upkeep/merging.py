"""Merges stores that were prepared alike: each scan once, its file linked or copied; an interrupted merge can be continued."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dagman.errors import StoreError
from dagman.records.counts import list_some
from dagman.records.files import write_whole
from dagman.records.hashes import hash_file
from dagman.records.journal import append_row, append_rows, read_rows
from dagman.records.lock import hold_lock
from dagman.records.provenance import write_command
from dagman.store.format import damaged_file, holds_store, locate_scan, read_info, read_preparation, write_info
from dagman.store.manifest import ManifestRow, Store, read_manifest, write_manifest
from dagman.store.series import explain_write_error


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Result of a merge."""

    scans: int
    patients: int
    already: int
    "Number of scans that were in the output already."
    copies: tuple[str, ...]
    "Ids of scans that are in several stores."
    notes: tuple[str, ...] = ()


def merge_stores(stores: Sequence[str | Path], out: str | Path, notify: Callable[[str], None] | None = None) -> Merge:
    """Merge several stores into a new one, without changing them; repeating an interrupted call continues it.

    A scan that is in several stores is taken from the first one that states its patient, otherwise from the first one. Each file is
    verified by its checksum, and then linked if the file system permits, otherwise copied.

    Args:
        stores: the stores to merge.
        out: the new store, or that of an earlier, interrupted call.
        notify: called with messages on the progress.

    Raises:
        StoreError: if the stores have different preparations or keys, before anything is written; or if a file is damaged, in which
            case the scans merged so far are kept.
    """
    out = Path(out)
    opened = [Store(path) for path in stores]
    _check_alike(opened)
    if any(out.resolve() == store.path.resolve() for store in opened):
        raise StoreError("is one of the stores to merge", where=out, do="Give another --out")
    chosen, copies, notes = _choose(opened)
    _check_out(out, opened[0], chosen)
    try:
        with hold_lock(out, StoreError):
            _check_out(out, opened[0], chosen)
            if not (out / "store.json").exists():
                write_info(out, opened[0].preparation, opened[0].info.get("key"))
            rows = read_manifest(out)
            already = 0
            for number, (row, store) in enumerate(chosen, 1):
                if notify is not None:
                    notify(f"merging scan {number} of {len(chosen)}")
                if rows.get(row.id) == row and _is_whole(out, row):
                    already += 1
                    continue
                # Renaming a link onto the same file would do nothing and leave the temporary name behind.
                if not _is_whole(out, row):
                    _place_file(store, out, row)
                append_row(out / "journal.jsonl", asdict(row))
                rows[row.id] = row
            _carry_origins(opened, out, {row.id for row, _ in chosen})
            write_manifest(out, rows.values())
            counts = {"scans": len(rows), "copies": len(copies), "already": already}
            inputs = {f"store {number}": store.info["digest"] for number, store in enumerate(opened, start=1)}
            write_command(out, "store merge", settings=asdict(opened[0].preparation), inputs=inputs, outcome=counts)
    except OSError as error:
        raise explain_write_error(error, out) from error
    patients = len({row.patient for row in rows.values()})
    return Merge(scans=len(rows), patients=patients, already=already, copies=tuple(copies), notes=tuple(notes))


def _check_alike(stores: Sequence[Store]) -> None:
    first = stores[0]
    for other in stores[1:]:
        expected, actual = asdict(first.preparation), asdict(other.preparation)
        different = [f"{name} {actual[name]} (not {value})" for name, value in expected.items() if actual[name] != value]
        if different or first.info.get("digest") != other.info.get("digest"):
            what = f"was prepared with {', '.join(different) or 'another version of the preparation'}, unlike {first.path}"
            raise StoreError(what, where=other.path, do="Prepare its scans again with the same settings")
        if first.info.get("key") != other.info.get("key"):
            what = f"uses a different key for pseudonyms than {first.path}: a patient would have two pseudonyms"
            raise StoreError(what, where=other.path, do="Prepare its scans again with the same --key")


def _check_out(out: Path, like: Store, chosen: Sequence[tuple[ManifestRow, Store]]) -> None:
    """Refuse an output folder that is not a store, was prepared differently, or contains scans of other stores."""
    if not holds_store(out):
        return
    info = read_info(out)
    if read_preparation(info, out) != like.preparation or info.get("key") != like.info.get("key"):
        raise StoreError("is a store with a different preparation or key", where=out, do="Give a new folder")
    if foreign := read_manifest(out).keys() - {row.id for row, _ in chosen}:
        what = f"contains scans that are in none of these stores: {list_some(sorted(foreign))}"
        raise StoreError(what, where=out, do="Give a new folder, and name this store among those to merge")


def _choose(stores: Sequence[Store]) -> tuple[list[tuple[ManifestRow, Store]], list[str], list[str]]:
    """Choose a row and its store for each scan, sorted by id; return them, ids in several stores, and notes on patients."""
    chosen: dict[str, tuple[ManifestRow, Store]] = {}
    copies: dict[str, None] = {}
    differing: dict[str, None] = {}
    for store in stores:
        for row in store.rows:
            if row.id not in chosen:
                chosen[row.id] = (row, store)
                continue
            copies[row.id] = None
            earlier = chosen[row.id][0]
            if earlier.patient != row.patient:
                differing[row.id] = None
                if earlier.patient_from == "assumed" and row.patient_from != "assumed":
                    chosen[row.id] = (row, store)
    notes = []
    if differing:
        rule = "a stated one is kept, otherwise that of the first store"
        notes.append(f"stores name different patients for {list_some(sorted(differing))}: {rule}")
    return [chosen[scan_id] for scan_id in sorted(chosen)], sorted(copies), notes


def _is_whole(out: Path, row: ManifestRow) -> bool:
    path = locate_scan(out, row.id)
    return path.is_file() and path.stat().st_size == row.size and hash_file(path) == row.checksum


def _place_file(store: Store, out: Path, row: ManifestRow) -> None:
    """Link the file of a scan, or copy it if it is on a different file system."""
    source = locate_scan(store.path, row.id)
    if not _is_whole(store.path, row):
        raise damaged_file(source)
    with write_whole(locate_scan(out, row.id)) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _carry_origins(stores: Sequence[Store], out: Path, ids: set[str]) -> None:
    """Copy the origins of all scans from the stores' journals, without duplicates, so that `dagman prepare` recognises sources."""
    fields = ("id", "source_hash", "place", "root", "listed", "stamp", "digest")
    known = {repr(sorted(row.items())) for row in read_rows(out / "journal.jsonl")}
    carried = {}
    for store in stores:
        for row in read_rows(store.path / "journal.jsonl"):
            if row.get("id") in ids and "place" in row:
                origin = {name: row[name] for name in fields if name in row}
                carried[repr(sorted(origin.items()))] = origin
    append_rows(out / "journal.jsonl", [origin for name, origin in carried.items() if name not in known])
