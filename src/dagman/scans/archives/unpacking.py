"""Unpack an archive that nobody has checked: no member leaves the folder, nothing but files is made, and the size is bounded.

Names of members are judged before anything is written. Source of the rules: Python's own `tarfile.data_filter` (PEP 706).
"""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from dagman.errors import ScanError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

MOST_MEMBERS = 500_000
"""A hospital's export of a hundred patients holds some 100,000 slices. [ours]"""
MOST_BYTES = 256 * 2**30
"""Of all members, unpacked. [ours]"""
MOST_INFLATED = 200
"""Times the archive's own size, for archives that claim more than `FREE_BYTES`: scans are packed 2 to 20 times. [ours]"""
FREE_BYTES = 2**30

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_AGAIN = "Download or export it again"


@dataclass(frozen=True)
class Left:
    """A member that was not unpacked: its name, what is wrong, and what to do."""

    member: str
    what: str
    do: str


def unpack_archive(archive: Path, folder: Path) -> tuple[Left, ...]:
    """Unpack a zip or tar archive into an empty folder; gives what was left out: links, damaged members, names that lead out.

    Raises ScanError for an archive that is encrypted, damaged as a whole, or too large.
    """
    try:
        if archive.name.lower().endswith(".zip"):
            return tuple(_unpack_zip(archive, folder))
        return tuple(_unpack_tar(archive, folder))
    except _DAMAGE as error:
        raise ScanError("is damaged, or is not an archive", where=archive, do=_AGAIN) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            do = "Set the variable TMPDIR to a folder on a larger disk, or unpack it yourself"
            raise ScanError(f"does not fit into {folder.parent}, into which it is unpacked", where=archive, do=do) from error
        if error.errno is None:
            # gzip and bz2 speak of damage by an OSError without a number.
            raise ScanError("is damaged, or is not an archive", where=archive, do=_AGAIN) from error
        raise ScanError(f"cannot be unpacked ({error.strerror})", where=archive, do="Check its permissions") from error


def _unpack_zip(archive: Path, folder: Path) -> Iterator[Left]:
    with zipfile.ZipFile(archive) as opened:
        members = [one for one in opened.infolist() if not one.is_dir()]
        if members and all(one.flag_bits & 1 for one in members):
            raise ScanError("is encrypted", where=archive, do="Unpack it with its password")
        bound = _Bound(archive)
        for one in members:
            bound.add(one.file_size)
        for one in members:
            # Programs on Windows write backslashes, which Python turns round on Windows alone.
            name = one.filename.replace("\\", "/")
            if one.flag_bits & 1:
                yield Left(name, "is encrypted in the archive", "Unpack it with its password")
            elif stat.S_ISLNK(one.external_attr >> 16):
                yield Left(name, "is a link in an archive", "Unpack it yourself, and give the folder")
            elif (target := _find_target(folder, name)) is None:
                yield _leads_out(name)
            elif not _is_hidden(name):
                try:
                    with opened.open(one) as source:
                        _copy(source, target)
                except _DAMAGE:
                    target.unlink(missing_ok=True)
                    yield Left(name, "is damaged in the archive", _AGAIN)
                except OSError as error:
                    yield _name_fault(name, error)


def _unpack_tar(archive: Path, folder: Path) -> Iterator[Left]:
    bound = _Bound(archive)
    with tarfile.open(archive, "r|*") as opened:
        for one in opened:
            bound.add(one.size)
            if one.isdir():
                continue
            if not one.isreg():
                yield Left(one.name, "is a link or a device in an archive", "Unpack it yourself, and give the folder")
            elif (target := _find_target(folder, one.name)) is None:
                yield _leads_out(one.name)
            elif not _is_hidden(one.name):
                source = opened.extractfile(one)
                assert source is not None
                try:
                    _copy(source, target)
                except OSError as error:
                    yield _name_fault(one.name, error)


class _Bound:
    """Counts members and bytes, and raises ScanError where there are more than is unpacked."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.packed = max(archive.stat().st_size, 1)
        self.members = self.bytes = 0

    def add(self, size: int) -> None:
        self.members += 1
        self.bytes += size
        inflated = self.bytes > FREE_BYTES and self.bytes > MOST_INFLATED * self.packed
        if self.members > MOST_MEMBERS or self.bytes > MOST_BYTES or inflated:
            held = f"more than {MOST_MEMBERS:,} files" if self.members > MOST_MEMBERS else f"{self.bytes / 2**30:.1f} GiB and more"
            raise ScanError(f"claims {held}", where=self.archive, do="Unpack it yourself if it can be trusted")


def _find_target(folder: Path, name: str) -> Path | None:
    """Where a member is written; None where its name leads out of the folder, or is none."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or parts[0].endswith(":"):
        return None
    return folder.joinpath(*parts)


def _is_hidden(name: str) -> bool:
    """Whether discovery would pass the file over, as it does a Mac's `._` files."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _copy(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # A later member of the same name is the newer one, as every program unpacks it.
    with open(target, "wb") as written:
        shutil.copyfileobj(source, written, 2**20)


def _leads_out(name: str) -> Left:
    return Left(name, "its path points outside the archive", "Create the archive again, with relative paths")


def _name_fault(name: str, error: OSError) -> Left:
    """A member that this file system cannot hold; anything that concerns all members is raised."""
    if error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EIO):
        raise error
    return Left(name, f"cannot be unpacked ({os.strerror(error.errno or 0)})", "Unpack it yourself, and give the folder")
