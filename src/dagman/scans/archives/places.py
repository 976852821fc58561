"""Where the members of archives lie while they are read, and by which names the user knows them: `archive.zip/inner/path`."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

from dagman.scans.archives.unpacking import SUFFIXES, Left, unpack_archive


@dataclass(frozen=True)
class _Unpacked:
    archive: Path
    folder: Path
    left: tuple[Left, ...]


_UNPACKED: dict[tuple[str, int, int], _Unpacked] = {}
"""By path, size and time of writing, so that an archive is unpacked once a process; a forked process finds it here, too."""

_FOLDERS: dict[str, Path] = {}
"""Temporary folders of this process, and the archives that lie in them."""


def is_archive(path: Path) -> bool:
    """Whether a path is a file with the name of an archive that can be unpacked."""
    return path.name.lower().endswith(SUFFIXES) and os.path.isfile(path)


def enter_archive(archive: Path) -> tuple[Path, tuple[Left, ...]]:
    """The folder that holds what is in an archive, and what was left out of it; removed when the process ends.

    Raises ScanError where the archive is encrypted, damaged, or larger than what is unpacked.
    """
    status = archive.stat()
    key = (str(archive.resolve()), status.st_size, status.st_mtime_ns)
    known = _UNPACKED.get(key)
    if known is None or known.archive != archive or not known.folder.is_dir():
        folder = Path(tempfile.mkdtemp(prefix="dagman-")).resolve()
        # Not atexit: a worker process ends without it.
        Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=0)
        try:
            left = unpack_archive(archive, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        known = _UNPACKED[key] = _Unpacked(archive, folder, left)
        _FOLDERS[str(folder)] = archive
    return known.folder, known.left


def reach_place(path: Path) -> Path:
    """A path as it can be opened: `archive.zip/inner` and `archive.zip#uid` in the folder where the archive is unpacked."""
    if os.path.exists(path):
        return enter_archive(path)[0] if is_archive(path) else path
    for place in (path, *path.parents):
        name, sign, uid = place.name.partition("#")
        archive = place.with_name(name) if name else place
        if is_archive(archive):
            folder = enter_archive(archive)[0]
            inner = path.relative_to(place)
            return Path(f"{folder}{sign}{uid}") if place == path else folder / inner
    return path


def show_place(path: str | Path, *, suffix: bool = True) -> Path:
    """A path as the user knows it; with `suffix` False an archive is named as the folder that it would be unpacked to."""
    path = Path(path)
    for folder in (path, *path.parents) if _FOLDERS else ():
        # Of `folder#uid`, too.
        name, sign, uid = folder.name.partition("#")
        archive = _FOLDERS.get(str(folder.parent / name))
        if archive is not None:
            shown = archive.name if suffix else _strip_suffix(archive.name)
            return archive.with_name(f"{shown}{sign}{uid}") / path.relative_to(folder)
    return path


def stat_place(path: Path) -> os.stat_result:
    """The state of a file, or of the archive that holds it: what is unpacked is always new."""
    for folder in path.parents if _FOLDERS else ():
        if (archive := _FOLDERS.get(str(folder))) is not None:
            return archive.stat()
    return path.stat()


def remove_unpacked() -> None:
    """Remove all that was unpacked, as the end of the process does."""
    for folder in _FOLDERS:
        shutil.rmtree(folder, ignore_errors=True)
    _UNPACKED.clear()
    _FOLDERS.clear()


def _strip_suffix(name: str) -> str:
    suffix = next(one for one in SUFFIXES if name.lower().endswith(one))
    return name[: -len(suffix)] or name
