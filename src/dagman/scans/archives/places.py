"""Where the members of archives lie while they are read, and by which names the user knows them: `archive.zip/inner/path`."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

from dagman.records.hashes import hash_bytes
from dagman.scans.archives.unpacking import SUFFIXES, Left, unpack_archive


@dataclass(frozen=True)
class _Unpacked:
    archive: Path
    folder: Path
    left: tuple[Left, ...]


_PREFIX = "dagman-"
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
        _remove_orphans()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_name_process(os.getpid())}-")).resolve()
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


@functools.cache
def _remove_orphans() -> None:
    """Remove, once a process, what processes of this user on this machine had unpacked and were killed over."""
    with contextlib.suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*-*-*"):
            machine, number, started = folder.name.removeprefix(_PREFIX).split("-")[:3]
            # Of another machine that shares the folder, or of another user, nothing is known.
            mine = machine == _name_machine() and number.isdigit() and folder.stat().st_uid == os.getuid()
            if mine and _name_process(int(number)) != f"{machine}-{number}-{started}":
                shutil.rmtree(folder, ignore_errors=True)


def _name_process(number: int) -> str:
    """A process of this machine: its number, which others get after it, and when it began; no such process, no such name."""
    try:
        # Behind the name, which may hold anything but ends with a bracket: the 22nd column.
        started = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "0" if _is_running(number) else "ended"
    return f"{_name_machine()}-{number}-{started}"


def _is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@functools.cache
def _name_machine() -> str:
    """This machine since it was started; containers on it that do not share their processes have names of their own."""
    spaces = ""
    with contextlib.suppress(OSError):
        spaces = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/pid")
    return hash_bytes(f"{platform.node()}{spaces}".encode())[:12]


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
