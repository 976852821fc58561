"""Removes scans and patients from a store: files, rows, and entries in the journal and the list of rejected files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagman.errors import StoreError
from dagman.records.counts import list_some
from dagman.records.csv_file import read_csv, write_csv
from dagman.records.journal import append_row, keep_rows, read_rows
from dagman.records.key import Key, find_key, use_key
from dagman.records.lock import hold_lock
from dagman.scans.dicom import HEADERS
from dagman.scans.pseudonyms import name_patient
from dagman.store.format import locate_scan, read_info
from dagman.store.manifest import read_manifest, write_manifest
from dagman.store.naming import settle_key
from dagman.store.sources import hide_name


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Result of a removal: numbers of removed scans and patients, and of scans left."""

    scans: int
    patients: int
    left: int


def remove_scans(store: str | Path, names: Sequence[str], *, key: str | Path | None = None) -> Removal:
    """Remove scans and patients from a store; repeating an interrupted call completes it.

    Their entries in the journal and in `rejected.csv` are removed as well, and all cached headers. Only the number of removed scans
    is recorded.

    Args:
        store: the store.
        names: ids of scans, and patients by pseudonym or by the name in their files.
        key: see `settle_key`; without the store's key, patients can be named only by pseudonym.

    Raises:
        StoreError: if a name is not in the store; then nothing is removed.
    """
    store = Path(store)
    made_with = read_info(store).get("key")
    with hold_lock(store, StoreError):
        store_key = _find_store_key(store, made_with, key)
        lacks_key = made_with is not None and store_key is None
        rows, journal = read_manifest(store), read_rows(store / "journal.jsonl")
        refused = {str(row["patient"]) for row in journal if "refused" in row}
        known = rows.keys() | {row.patient for row in rows.values()} | refused
        resolved = {name: name if name in known or lacks_key else _name_patient(name, store_key) for name in names}
        unknown = [name for name, target in resolved.items() if target not in known]
        if unknown:
            do = f"See dagman store list {store}" + ("; the names in files need the store's --key" if lacks_key else "")
            raise StoreError(f"contains no scan or patient {list_some(map(repr, unknown))}", where=store, do=do)
        targets = set(resolved.values())
        ids = {scan_id for scan_id, row in rows.items() if scan_id in targets or row.patient in targets}
        patients = {rows[scan_id].patient for scan_id in ids} | (targets & refused)

        def is_removed(row: Mapping[str, Any]) -> bool:
            return row.get("id") in ids or ("refused" in row and row["patient"] in targets)

        (store / HEADERS).unlink(missing_ok=True)
        # Files first: as long as their rows exist, a repeated call finds what remains to be done.
        for scan_id in ids:
            locate_scan(store, scan_id).unlink(missing_ok=True)
        listed = {row.get("listed", "") for row in journal if is_removed(row)}
        _clear_rejected(store / "rejected.csv", None if lacks_key or "" in listed else listed, store_key)
        keep_rows(store / "journal.jsonl", lambda row: not is_removed(row))
        append_row(store / "journal.jsonl", {"removed": len(ids)})
        write_manifest(store, [row for scan_id, row in rows.items() if scan_id not in ids])
    return Removal(scans=len(ids), patients=len(patients), left=len(rows) - len(ids))


def _find_store_key(store: Path, made_with: str | None, path: str | Path | None) -> Key | None:
    """Return the store's own key; None if it has none, or it is not available."""
    if path is not None:
        return settle_key(store, path)[0]
    key = find_key() if made_with else None
    return key if key is not None and key.fingerprint == made_with else None


def _name_patient(name: str, key: Key | None) -> str:
    with use_key(key):
        return name_patient(name)


def _clear_rejected(path: Path, listed: Collection[str] | None, key: Key | None) -> None:
    """Remove sources from rejected.csv; None (unknown) removes the whole file, which the next preparation writes again."""
    if listed is None:
        path.unlink(missing_ok=True)
    elif path.exists():
        rows = [(row["source"], row["reason"]) for row in read_csv(path) if hide_name(row["source"], key) not in listed]
        write_csv(path, ["source", "reason"], rows)
