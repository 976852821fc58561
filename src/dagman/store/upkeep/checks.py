"""Shares between the processes that read a store which files of scans have been verified."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from dagman.records.hashes import hash_bytes

_SIZE = 8


class SharedChecks:
    """A file with one mark per scan, read and written by all processes of a run, so that each scan's file is hashed only once.

    A mark is valid for the file as it was checked (inode, size, modification time). There is no lock, since a lost mark or a
    missing file only causes another check.

    Args:
        file: the file of marks.
        scans: ids of all scans, sorted.
    """

    def __init__(self, file: Path, scans: Sequence[str]) -> None:
        self.file, self.scans = file, scans

    def begin(self) -> None:
        """Clear the marks of earlier runs; one process does this before the others start."""
        with open(self.file, "wb") as file:
            file.truncate(_SIZE * len(self.scans))

    def end(self) -> None:
        """Remove the file; processes that still read the store then check files themselves."""
        self.file.unlink(missing_ok=True)

    def holds(self, scan: str, path: Path) -> bool:
        """Return whether a process has verified the scan's file in its present state."""
        try:
            with open(self.file, "rb", buffering=0) as file:
                file.seek(self._find(scan))
                return file.read(_SIZE) == _mark(path)
        except OSError:
            return False

    def add(self, scan: str, path: Path) -> None:
        """Record that the scan's file is undamaged."""
        try:
            with open(self.file, "r+b", buffering=0) as file:
                file.seek(self._find(scan))
                file.write(_mark(path))
        except OSError:
            # Without the file, space on the disk, or permission, each process checks files itself.
            return

    def _find(self, scan: str) -> int:
        return _SIZE * bisect_left(self.scans, scan)


def _mark(path: Path) -> bytes:
    status = os.stat(path)
    text = f"{path.name} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
    return bytes.fromhex(hash_bytes(text.encode()))[:_SIZE]
