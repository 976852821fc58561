"""Taking a patient out of a store: scans, rows, and what the journal and the list of rejected files say of them."""

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
    """How many scans of how many patients were removed, and how many scans are left."""

    scans: int
    patients: int
    left: int


def remove_scans(store: str | Path, names: Sequence[str], *, key: str | Path | None = None) -> Removal:
    """Remove scans, given by id, and all scans of patients, given by pseudonym or by the name that their files give them.

    What the journal and `rejected.csv` say of them goes, too, and with it all kept headers; a record of the number alone stays.
    key: see `settle_key`; without it patients are known by pseudonym alone. A call that was killed is completed by the same call.
    Raises StoreError, and removes nothing, when a name is not in the store.
    """
    store = Path(store)
    made_with = read_info(store).get("key")
    with hold_lock(store, StoreError):
        own = _find_own_key(store, made_with, key)
        hidden = made_with is not None and own is None
        rows, journal = read_manifest(store), read_rows(store / "journal.jsonl")
        refused = {str(row["patient"]) for row in journal if "refused" in row}
        held = rows.keys() | {row.patient for row in rows.values()} | refused
        found = {name: name if name in held or hidden else _name_patient(name, own) for name in names}
        unknown = [name for name, meant in found.items() if meant not in held]
        if unknown:
            do = f"See dagman store list {store}" + ("; the names in files need the store's --key" if hidden else "")
            raise StoreError(f"holds no scan and no patient {list_some(map(repr, unknown))}", where=store, do=do)
        meant = set(found.values())
        ids = {scan_id for scan_id, row in rows.items() if scan_id in meant or row.patient in meant}
        patients = {rows[scan_id].patient for scan_id in ids} | (meant & refused)

        def is_theirs(row: Mapping[str, Any]) -> bool:
            return row.get("id") in ids or ("refused" in row and row["patient"] in meant)

        (store / HEADERS).unlink(missing_ok=True)
        # Files first: as long as a row stands, the same call finds what is left to do.
        for scan_id in ids:
            locate_scan(store, scan_id).unlink(missing_ok=True)
        listed = {row.get("listed", "") for row in journal if is_theirs(row)}
        _clear_rejected(store / "rejected.csv", None if hidden or "" in listed else listed, own)
        keep_rows(store / "journal.jsonl", lambda row: not is_theirs(row))
        append_row(store / "journal.jsonl", {"removed": len(ids)})
        write_manifest(store, [row for scan_id, row in rows.items() if scan_id not in ids])
    return Removal(scans=len(ids), patients=len(patients), left=len(rows) - len(ids))


def _find_own_key(store: Path, made_with: str | None, path: str | Path | None) -> Key | None:
    """The store's own key; None where it has none, or where it is not at hand."""
    if path is not None:
        return settle_key(store, path)[0]
    key = find_key() if made_with else None
    return key if key is not None and key.fingerprint == made_with else None


def _name_patient(name: str, key: Key | None) -> str:
    with use_key(key):
        return name_patient(name)


def _clear_rejected(path: Path, listed: Collection[str] | None, key: Key | None) -> None:
    """Take these sources out of rejected.csv; None, where they are not known, removes it: the next preparation writes it anew."""
    if listed is None:
        path.unlink(missing_ok=True)
    elif path.exists():
        rows = [(row["source"], row["reason"]) for row in read_csv(path) if hide_name(row["source"], key) not in listed]
        write_csv(path, ["source", "reason"], rows)
