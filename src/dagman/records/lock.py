"""One writer a folder: an advisory lock that the operating system frees when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from dagman.errors import DagmanError


@contextlib.contextmanager
def hold_lock(folder: str | Path, error: type[DagmanError] = DagmanError) -> Iterator[None]:
    """Hold `folder/.lock` for the block. A block that fails before it wrote anything leaves no folder that was not there before.

    Raises `error` at once if another process holds it, naming that process, or if the folder's place is taken by a file.
    """
    path = Path(folder) / ".lock"
    made = [place for place in (path.parent, *path.parent.parents) if not place.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise error("is a file, or is inside one", where=folder, do="Choose another folder") from None
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise error(f"{holder} is writing here", where=folder, do="Wait until it ends, or choose another folder") from None
        if not _is_at(file, path):
            # Opened before, locked after another process removed it: it would keep nobody out.
            raise error("another process has just released it", where=folder, do="Repeat the command")
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        except BaseException:
            _remove_unused(path, made)
            raise
        finally:
            file.truncate(0)


def is_held(folder: str | Path) -> bool:
    """Whether a living process of this file system's hosts holds `folder/.lock`; nothing is written."""
    path = Path(folder) / ".lock"
    try:
        with open(path) as file:
            # A holder writes its name, and empties the file at its end: only a killed one leaves it, with the lock free.
            if not file.read().strip():
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_unused(path: Path, made: Sequence[Path]) -> None:
    """Remove a lock and the folders that were made for it, the innermost first, as far as nothing else lies in them."""
    # What another process put there in between stays, and is no reason to hide why the block failed.
    with contextlib.suppress(OSError):
        if made and os.listdir(path.parent) == [path.name]:
            path.unlink()
            for place in made:
                place.rmdir()
