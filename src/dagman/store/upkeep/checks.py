"""Which scans' files were found undamaged, shared by the processes that read a store."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from dagman.records.hashes import hash_bytes

_SIZE = 8


class SharedChecks:
    """One mark per scan in a file that all processes of a run read and write, so that each scan's file is hashed once, not once
    per process.

    A mark holds for the file as it was checked (inode, size, time of its last change). There is no lock: a mark that is lost, or
    a file that is not there, costs another check and nothing else.

    file: Where the marks are. scans: The ids of all scans, sorted.
    """

    def __init__(self, file: Path, scans: Sequence[str]) -> None:
        self.file, self.scans = file, scans

    def begin(self) -> None:
        """Forget the marks of processes before: one process does so before the others start."""
        with open(self.file, "wb") as file:
            file.truncate(_SIZE * len(self.scans))

    def end(self) -> None:
        """Remove the file; what still reads the store checks for itself."""
        self.file.unlink(missing_ok=True)

    def holds(self, scan: str, path: Path) -> bool:
        """Whether a process has found the scan's file, as it is now, undamaged."""
        try:
            with open(self.file, "rb", buffering=0) as file:
                file.seek(self._find(scan))
                return file.read(_SIZE) == _mark(path)
        except OSError:
            return False

    def add(self, scan: str, path: Path) -> None:
        """Note that the scan's file is undamaged."""
        try:
            with open(self.file, "r+b", buffering=0) as file:
                file.seek(self._find(scan))
                file.write(_mark(path))
        except OSError:
            # No file, a full disk, or no permission: each process checks for itself.
            return

    def _find(self, scan: str) -> int:
        return _SIZE * bisect_left(self.scans, scan)


def _mark(path: Path) -> bytes:
    found = os.stat(path)
    text = f"{path.name} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    return bytes.fromhex(hash_bytes(text.encode()))[:_SIZE]
