"""Names of series, such that every command accepts the names that another one prints.

A series can be named in three ways: by a folder with a single series; by any file of the series, which stands for the whole series;
and by `folder#uid` with its SeriesInstanceUID, if a folder holds several series. If a series consists of several volumes, such as
cardiac phases, `folder#uid:acquisition=2` names one of them and `folder#uid` all of them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dagman.errors import ScanError
from dagman.scans.archives import reach_place, show_place
from dagman.scans.dicom.headers import read_header, resembles_dicom
from dagman.scans.dicom.series import DicomGroup

_PLAIN_UID = re.compile(r"[\w.-]+")
"""UIDs that may follow a #; a series with a different UID is named by its first file."""


@dataclass(frozen=True, kw_only=True)
class NamedGroup:
    """A group with its name."""

    source: str
    "The name that is printed."
    part: str
    "Which volume of its series it is; empty if it is the only one."
    group: DicomGroup


@dataclass(frozen=True, kw_only=True)
class SeriesName:
    """The parts of a name `folder#uid` or `folder#uid:part`."""

    folder: Path
    uid: str
    part: str = ""

    def names(self, named: NamedGroup) -> bool:
        """Return whether a group is one of those that this name refers to."""
        return named.group.uid == self.uid and self.part in ("", named.part)


def parse_name(path: str | Path) -> SeriesName | None:
    """Parse `folder#uid`; return None if the path itself exists, or its folder does not."""
    text = str(path)
    folder, sign, rest = text.rpartition("#")
    if not sign or os.path.exists(text) or not os.path.isdir(folder or "."):
        return None
    uid, _, part = rest.partition(":")
    return SeriesName(folder=Path(folder or "."), uid=uid, part=part) if uid else None


def source_exists(path: str | Path) -> bool:
    """Return whether a path, or the folder of a `folder#uid`, exists; the folder is not searched for the series."""
    if os.path.exists(path) or parse_name(path) is not None:
        return True
    try:
        # The path may lead into an archive.
        reached = reach_place(Path(path))
    except ScanError:
        return False
    return os.path.exists(reached) or parse_name(reached) is not None


def read_series_uid(path: Path) -> str | None:
    """Read the SeriesInstanceUID, "" if the file has none; return None if it is not DICOM or cannot be read."""
    try:
        return read_header(path).series_uid if resembles_dicom(path) else None
    except (OSError, ScanError):
        return None


def list_by_uid(folder: Path) -> dict[str, list[Path]]:
    """List the DICOM files in a folder, without subfolders, by SeriesInstanceUID; {} if the folder cannot be read."""
    by_uid: dict[str, list[Path]] = {}
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:
        return {}
    for path in entries:
        # os.path.isfile, since path.is_file() raises for a link into a folder that cannot be entered.
        uid = read_series_uid(path) if not path.name.startswith(".") and os.path.isfile(path) else None
        if uid is not None:
            by_uid.setdefault(uid, []).append(path)
    return by_uid


def name_groups(groups: Sequence[DicomGroup]) -> list[NamedGroup]:
    """Name each group: by its folder if that holds no other volume at any depth, else by `folder#uid`, else by its first file."""
    folders = [Path(os.path.commonpath([show_place(path).parent for path in group.files])) for group in groups]
    volumes = [folder for folder, group in zip(folders, groups, strict=True) if not group.reason]
    # Counted in each volume's parents: comparing all pairs of folders took over an hour for ten thousand series.
    counts = Counter(ancestor for folder in volumes for ancestor in (folder, *folder.parents))
    parts = _distinguish(groups, folders)
    return [
        NamedGroup(source=_name_group(group, folder, part, counts[folder]), part=part, group=group)
        for group, folder, part in zip(groups, folders, parts, strict=True)
    ]


def name_selected(named: NamedGroup) -> str:
    """Return the name of a group whose folder may hold series that were not read."""
    folder = Path(os.path.commonpath([show_place(path).parent for path in named.group.files]))
    return _name_group(named.group, folder, named.part, volumes=2)


def _distinguish(groups: Sequence[DicomGroup], folders: Sequence[Path]) -> list[str]:
    """The part of each group's name: empty for the only volume of its series, else its tag, else a number."""
    series = [(folder, group.uid) for folder, group in zip(folders, groups, strict=True)]
    volumes = Counter(key for key, group in zip(series, groups, strict=True) if not group.reason)
    labels = Counter((key, group.part) for key, group in zip(series, groups, strict=True) if not group.reason)
    numbers: Counter[tuple[Path, str]] = Counter()
    parts = []
    for key, group in zip(series, groups, strict=True):
        if group.reason or volumes[key] == 1:
            parts.append("")
        elif group.part and labels[key, group.part] == 1:
            parts.append(group.part)
        else:
            numbers[key] += 1
            parts.append(f"volume={numbers[key]}")
    return parts


def _name_group(group: DicomGroup, folder: Path, part: str, volumes: int) -> str:
    """Name a group; `volumes` is the number of volumes in its folder."""
    if group.reason or len(group.files) == 1:
        return str(show_place(group.files[0]))
    if volumes == 1:
        return str(folder)
    if not _PLAIN_UID.fullmatch(group.uid):
        return str(show_place(group.files[0]))
    return f"{folder}#{group.uid}" + (f":{part}" if part else "")
