"""Allows one writer per folder, by an advisory lock that the operating system releases when its holder exits or is killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from dagman.errors import DagmanError


@contextlib.contextmanager
def hold_lock(folder: str | Path, error: type[DagmanError] = DagmanError) -> Iterator[None]:
    """Hold `folder/.lock` during the block, creating the folder if needed.

    If the block fails before it has written anything, the folders created here are removed again.

    Raises:
        error: at once, if another process holds the lock (the message names it), or if the path is a file or inside a file.
    """
    path = Path(folder) / ".lock"
    created = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise error("is a file, or is inside one", where=folder, do="Choose another folder") from None
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as refused:
            if refused.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                _remove_unused(path, created)
                what = f"its file system cannot lock files ({(refused.strerror or str(refused)).lower()})"
                raise error(what, where=folder, do="Choose a folder on another file system") from None
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise error(f"{holder} is writing here", where=folder, do="Wait until it ends, or choose another folder") from None
        if not _is_at(file, path):
            # Another process removed the file after we opened it and before we locked it: such a lock would exclude nobody.
            raise error("another process has just released it", where=folder, do="Repeat the command")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        except BaseException:
            _remove_unused(path, created)
            raise
        finally:
            file.truncate(0)


def is_held(folder: str | Path) -> bool:
    """Return whether a running process on any host that shares the file system holds `folder/.lock`; writes nothing."""
    path = Path(folder) / ".lock"
    try:
        with open(path) as file:
            # A holder writes its name and empties the file when it ends. One that was killed leaves the name, but not the lock.
            if not file.read().strip():
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def is_left(folder: str | Path) -> bool:
    """Whether a process that was killed left `folder/.lock` behind."""
    try:
        return bool((Path(folder) / ".lock").read_text(encoding="utf-8").strip()) and not is_held(folder)
    except OSError:
        return False


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_unused(path: Path, created: Sequence[Path]) -> None:
    """Remove the lock and the folders created for it, innermost first, as long as they are otherwise empty."""
    # Files that another process has added stay, and an error here must not hide why the block failed.
    with contextlib.suppress(OSError):
        if created and os.listdir(path.parent) == [path.name]:
            path.unlink()
            for parent in created:
                parent.rmdir()
