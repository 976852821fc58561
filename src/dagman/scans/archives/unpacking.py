"""Unpacks untrusted archives: no member can leave the folder, only files are created, and the size is limited.

Names of members are checked before anything is written. The rules follow Python's `tarfile.data_filter` (PEP 706).
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
"""A hospital's export of a hundred patients has about 100,000 slices. [ours]"""
MOST_BYTES = 256 * 2**30
"""Limit on the unpacked size of all members. [ours]"""
MOST_INFLATED = 200
"""Limit on the compression ratio of an archive that claims more than `FREE_BYTES`; that of scans is 2 to 20. [ours]"""
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
class RejectedMember:
    """A member of an archive that was not unpacked: its name, what is wrong, and what to do."""

    member: str
    what: str
    do: str


def unpack_archive(archive: Path, folder: Path) -> tuple[RejectedMember, ...]:
    """Unpack a zip or tar archive into an empty folder.

    Returns:
        Members that were not unpacked: links, damaged or encrypted members, names that point outside the folder.

    Raises:
        ScanError: if the archive is encrypted, damaged as a whole, or too large.
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
            # gzip and bz2 report damage by an OSError without an error number.
            raise ScanError("is damaged, or is not an archive", where=archive, do=_AGAIN) from error
        raise ScanError(f"cannot be unpacked ({error.strerror})", where=archive, do="Check its permissions") from error


def _unpack_zip(archive: Path, folder: Path) -> Iterator[RejectedMember]:
    with zipfile.ZipFile(archive) as opened:
        members = [member for member in opened.infolist() if not member.is_dir()]
        if members and all(member.flag_bits & 1 for member in members):
            raise ScanError("is encrypted", where=archive, do="Unpack it with its password")
        limit = _SizeLimit(archive)
        for member in members:
            limit.add(member.file_size)
        for member in members:
            # Some programs on Windows write backslashes, which Python converts only on Windows.
            name = member.filename.replace("\\", "/")
            if member.flag_bits & 1:
                yield RejectedMember(name, "is encrypted in the archive", "Unpack it with its password")
            elif stat.S_ISLNK(member.external_attr >> 16):
                yield RejectedMember(name, "is a link in an archive", "Unpack it yourself, and give the folder")
            elif (target := _find_target(folder, name)) is None:
                yield _reject_path(name)
            elif not _is_hidden(name):
                try:
                    with opened.open(member) as source:
                        _copy(source, target)
                except _DAMAGE:
                    target.unlink(missing_ok=True)
                    yield RejectedMember(name, "is damaged in the archive", _AGAIN)
                except OSError as error:
                    yield _reject_or_raise(name, error)


def _unpack_tar(archive: Path, folder: Path) -> Iterator[RejectedMember]:
    limit = _SizeLimit(archive)
    with tarfile.open(archive, "r|*") as opened:
        for member in opened:
            limit.add(member.size)
            if member.isdir():
                continue
            if not member.isreg():
                yield RejectedMember(member.name, "is a link or a device in an archive", "Unpack it yourself, and give the folder")
            elif (target := _find_target(folder, member.name)) is None:
                yield _reject_path(member.name)
            elif not _is_hidden(member.name):
                source = opened.extractfile(member)
                assert source is not None
                try:
                    _copy(source, target)
                except OSError as error:
                    yield _reject_or_raise(member.name, error)


class _SizeLimit:
    """Counts members and bytes, and raises ScanError if there are too many."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.packed = max(archive.stat().st_size, 1)
        self.members = self.bytes = 0

    def add(self, size: int) -> None:
        self.members += 1
        self.bytes += size
        is_bomb = self.bytes > FREE_BYTES and self.bytes > MOST_INFLATED * self.packed
        if self.members > MOST_MEMBERS or self.bytes > MOST_BYTES or is_bomb:
            claim = f"more than {MOST_MEMBERS:,} files" if self.members > MOST_MEMBERS else f"{self.bytes / 2**30:.1f} GiB or more"
            raise ScanError(f"claims {claim}", where=self.archive, do="Unpack it yourself if it can be trusted")


def _find_target(folder: Path, name: str) -> Path | None:
    """Return the file that a member is written to; None if its name is invalid or points outside the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or parts[0].endswith(":"):
        return None
    return folder.joinpath(*parts)


def _is_hidden(name: str) -> bool:
    """Return whether discovery would ignore the file, such as the `._` files of macOS."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _copy(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # A later member of the same name replaces an earlier one, as in other programs.
    with open(target, "wb") as written:
        shutil.copyfileobj(source, written, 2**20)


def _reject_path(name: str) -> RejectedMember:
    return RejectedMember(name, "its path points outside the archive", "Create the archive again, with relative paths")


def _reject_or_raise(name: str, error: OSError) -> RejectedMember:
    """Reject a member that the file system cannot store; raise errors that concern all members, such as a full disk."""
    if error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EIO):
        raise error
    return RejectedMember(name, f"cannot be unpacked ({os.strerror(error.errno or 0)})", "Unpack it yourself, and give the folder")
