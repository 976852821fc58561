"""Verifies that a store agrees with its manifest, by reading every file once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dagman.errors import StoreError
from dagman.records.hashes import hash_file
from dagman.store.format import STAGING, locate_scan, name_scan, open_voxels
from dagman.store.manifest import ManifestRow, Store


@dataclass(frozen=True)
class Finding:
    """A problem in a store: the file, relative to the store, and what is wrong with it."""

    file: str
    problem: str


def verify_store(store: Store, notify: Callable[[str], None] | None = None) -> list[Finding]:
    """Check every scan's file against its row (presence, size, checksum, header), and find files without a row.

    Args:
        store: the store.
        notify: called with messages on the progress.

    Raises:
        StoreError: if the manifest cannot be read.
    """
    findings = []
    for number, row in enumerate(store.rows, 1):
        if notify is not None:
            notify(f"reading scan {number} of {len(store.rows)}")
        if problem := _check_row(store, row):
            findings.append(Finding(_name_file(store, row), problem))
    expected = {locate_scan(store.path, row.id) for row in store.rows}
    extra = [path for path in (store.path / "scans").rglob("*") if path.is_file() and path not in expected]
    extra += [path for path in (store.path / STAGING).rglob("*") if path.is_file()]
    findings += [Finding(str(path.relative_to(store.path)), "has no row in the manifest") for path in extra]
    return sorted(findings, key=lambda finding: finding.file)


def _check_row(store: Store, row: ManifestRow) -> str | None:
    """Return what is wrong with a scan's file, or None."""
    path = locate_scan(store.path, row.id)
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != row.size:
        return f"holds {size} bytes instead of {row.size}"
    if hash_file(path) != row.checksum:
        return "its checksum differs from the manifest's"
    if row.id != name_scan(row.content_hash):
        return "its id does not match its content hash"
    try:
        shape = open_voxels(path).shape
    except StoreError as error:
        return error.what
    return None if shape == row.shape else f"has shape {shape} instead of {row.shape}"


def _name_file(store: Store, row: ManifestRow) -> str:
    return str(locate_scan(store.path, row.id).relative_to(store.path))
