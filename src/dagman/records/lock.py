"""One writer a folder: an advisory lock that the operating system frees when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dagman.errors import DagmanError


@contextlib.contextmanager
def hold_lock(folder: str | Path, error: type[DagmanError] = DagmanError) -> Iterator[None]:
    """Hold `folder/.lock` for the block.

    Raises `error` at once if another process holds it, naming that process, or if the folder's place is taken by a file.
    """
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise error("is a file, or lies below one", where=folder, do="Choose another folder") from None
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise error(f"{holder} is writing here", where=folder, do="Wait until it ends, or choose another folder") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
