"""Maps members of archives between the user's names (`archive.zip/inner/path`) and the files they are unpacked to."""

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

from dagman.errors import ScanError
from dagman.records.hashes import hash_bytes
from dagman.records.names import suggest_path
from dagman.scans.archives.unpacking import SUFFIXES, RejectedMember, unpack_archive


@dataclass(frozen=True)
class _Unpacked:
    archive: Path
    folder: Path
    rejected: tuple[RejectedMember, ...]


_PREFIX = "dagman-"
_UNPACKED: dict[tuple[str, int, int], _Unpacked] = {}
"""Unpacked archives by path, size and modification time: a process, and any process forked from it, unpacks an archive once."""

_FOLDERS: dict[str, Path] = {}
"""Archives by the temporary folder of this process that they are unpacked to."""


def is_archive(path: Path) -> bool:
    """Return whether a path is a file with the suffix of an archive that can be unpacked."""
    return path.name.lower().endswith(SUFFIXES) and os.path.isfile(path)


def enter_archive(archive: Path) -> tuple[Path, tuple[RejectedMember, ...]]:
    """Unpack an archive into a temporary folder, which is removed when the process ends.

    Returns:
        The folder, and the members that were not unpacked.

    Raises:
        ScanError: if the archive is encrypted, damaged or too large.
    """
    status = archive.stat()
    key = (str(archive.resolve()), status.st_size, status.st_mtime_ns)
    known = _UNPACKED.get(key)
    if known is None or known.archive != archive or not known.folder.is_dir():
        _remove_orphans()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_name_process(os.getpid())}-")).resolve()
        # Not atexit, which worker processes skip.
        Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=0)
        try:
            rejected = unpack_archive(archive, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        known = _UNPACKED[key] = _Unpacked(archive, folder, rejected)
        _FOLDERS[str(folder)] = archive
    return known.folder, known.rejected


@functools.cache
def _remove_orphans() -> None:
    """Remove, once per process, what other processes of this user on this machine unpacked before they were killed."""
    with contextlib.suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*-*-*"):
            machine, number, started = folder.name.removeprefix(_PREFIX).split("-")[:3]
            # Processes of another user, or of another machine that shares the folder, may still be running.
            is_own = machine == _name_machine() and number.isdigit() and folder.stat().st_uid == os.getuid()
            if is_own and _name_process(int(number)) != f"{machine}-{number}-{started}":
                shutil.rmtree(folder, ignore_errors=True)


def _name_process(number: int) -> str:
    """Name a process by machine, number and start time, since numbers are reused."""
    try:
        # The start time is column 22; the process's name before it may contain anything, but ends with a parenthesis.
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
    """Name this machine since its last start; containers with separate process namespaces have different names."""
    spaces = ""
    with contextlib.suppress(OSError):
        spaces = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/pid")
    return hash_bytes(f"{platform.node()}{spaces}".encode())[:12]


def reach_place(path: Path) -> Path:
    """Return a path that can be opened: for `archive.zip/inner` and `archive.zip#uid`, in the folder of the unpacked archive."""
    if os.path.exists(path):
        return enter_archive(path)[0] if is_archive(path) else path
    for parent in (path, *path.parents):
        name, sign, uid = parent.name.partition("#")
        archive = parent.with_name(name) if name else parent
        if is_archive(archive):
            folder = enter_archive(archive)[0]
            return Path(f"{folder}{sign}{uid}") if parent == path else folder / path.relative_to(parent)
    return path


def show_place(path: str | Path, *, suffix: bool = True) -> Path:
    """Return a path as the user knows it: `archive.zip/inner` for a file in an archive, or `archive/inner` without `suffix`."""
    path = Path(path)
    for folder in (path, *path.parents) if _FOLDERS else ():
        # The path may be `folder#uid`.
        name, sign, uid = folder.name.partition("#")
        archive = _FOLDERS.get(str(folder.parent / name))
        if archive is not None:
            shown = archive.name if suffix else _strip_suffix(archive.name)
            return archive.with_name(f"{shown}{sign}{uid}") / path.relative_to(folder)
    return path


def stat_place(path: Path) -> os.stat_result:
    """Return the status of a file, or of the archive that contains it, since unpacked files are always new."""
    for folder in path.parents if _FOLDERS else ():
        if (archive := _FOLDERS.get(str(folder))) is not None:
            return archive.stat()
    return path.stat()


def remove_unpacked() -> None:
    """Remove all unpacked archives, as happens at the end of the process."""
    for folder in _FOLDERS:
        shutil.rmtree(folder, ignore_errors=True)
    _UNPACKED.clear()
    _FOLDERS.clear()


def _strip_suffix(name: str) -> str:
    suffix = next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix))
    return name[: -len(suffix)] or name


def find_fault(path: Path) -> ScanError | None:
    """Why a path cannot be opened; None if it can."""
    try:
        path.stat()
    except FileNotFoundError:
        return ScanError("does not exist", where=show_place(path), do=suggest_path(path, "Check the path"))
    except OSError as error:
        do = "Check the path and its permissions"
        return ScanError(f"cannot be opened ({error.strerror})", where=show_place(path), do=do)
    return None
