"""How a series is named, so that every command reads what another one printed.

Three names are valid everywhere: a folder that holds one series; any file of a series, which means all of it; and
`folder#uid`, the SeriesInstanceUID, where a folder holds several. Where one series holds several volumes, such as phases of the
heart, `folder#uid:acquisition=2` names one of them and `folder#uid` all.
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
"""What can stand behind a #; a series of another UID is named by its first file."""


@dataclass(frozen=True, kw_only=True)
class NamedGroup:
    """A group with the name it is printed by; `part`: which volume of its series, empty where it is the only one."""

    source: str
    part: str
    group: DicomGroup


@dataclass(frozen=True, kw_only=True)
class SeriesName:
    """`folder#uid` or `folder#uid:part`, taken apart."""

    folder: Path
    uid: str
    part: str = ""

    def names(self, one: NamedGroup) -> bool:
        """Whether a group is (one of) what is meant."""
        return one.group.uid == self.uid and self.part in ("", one.part)


def parse_name(path: str | Path) -> SeriesName | None:
    """The parts of `folder#uid`; None for a path that exists as it stands, or whose folder does not."""
    text = str(path)
    folder, sign, rest = text.rpartition("#")
    if not sign or os.path.exists(text) or not os.path.isdir(folder or "."):
        return None
    uid, _, part = rest.partition(":")
    return SeriesName(folder=Path(folder or "."), uid=uid, part=part) if uid else None


def source_exists(path: str | Path) -> bool:
    """Whether a path, or the folder of a `folder#uid`, is there; whether that folder holds the series is not checked."""
    if os.path.exists(path) or parse_name(path) is not None:
        return True
    try:
        # A member of an archive.
        reached = reach_place(Path(path))
    except ScanError:
        return False
    return os.path.exists(reached) or parse_name(reached) is not None


def read_series_uid(path: Path) -> str | None:
    """The SeriesInstanceUID, empty where the file has none; None for no DICOM, or a file that reading will explain."""
    try:
        return read_header(path).series_uid if resembles_dicom(path) else None
    except (OSError, ScanError):
        return None


def list_by_uid(folder: Path) -> dict[str, list[Path]]:
    """The DICOM files in a folder (not below it) by SeriesInstanceUID; empty where the folder cannot be read."""
    by_uid: dict[str, list[Path]] = {}
    try:
        beside = sorted(folder.iterdir())
    except PermissionError:
        return {}
    for path in beside:
        # Not path.is_file(), which raises where a link leads below a closed folder.
        uid = read_series_uid(path) if not path.name.startswith(".") and os.path.isfile(path) else None
        if uid is not None:
            by_uid.setdefault(uid, []).append(path)
    return by_uid


def name_groups(groups: Sequence[DicomGroup]) -> list[NamedGroup]:
    """Each group with its name: its folder where no other volume lies in or below it, else `folder#uid`, else its first file."""
    folders = [Path(os.path.commonpath([show_place(path).parent for path in group.files])) for group in groups]
    volumes = [folder for folder, group in zip(folders, groups, strict=True) if not group.reason]
    # Counted upwards, once a volume: comparing every two folders took over an hour for ten thousand series.
    held = Counter(place for folder in volumes for place in (folder, *folder.parents))
    parts = _distinguish(groups, folders)
    return [
        NamedGroup(source=_name_group(group, folder, part, held[folder]), part=part, group=group)
        for group, folder, part in zip(groups, folders, parts, strict=True)
    ]


def name_selected(one: NamedGroup) -> str:
    """The name of a group whose folder may hold other series than those that were read."""
    folder = Path(os.path.commonpath([show_place(path).parent for path in one.group.files]))
    return _name_group(one.group, folder, one.part, held=2)


def _distinguish(groups: Sequence[DicomGroup], folders: Sequence[Path]) -> list[str]:
    """The part of each group's name: empty for the only volume of its series, else its tag, else a number."""
    places = [(folder, group.uid) for folder, group in zip(folders, groups, strict=True)]
    volumes = Counter(place for place, group in zip(places, groups, strict=True) if not group.reason)
    labels = Counter((place, group.part) for place, group in zip(places, groups, strict=True) if not group.reason)
    numbers: Counter[tuple[Path, str]] = Counter()
    parts = []
    for place, group in zip(places, groups, strict=True):
        if group.reason or volumes[place] == 1:
            parts.append("")
        elif group.part and labels[place, group.part] == 1:
            parts.append(group.part)
        else:
            numbers[place] += 1
            parts.append(f"volume={numbers[place]}")
    return parts


def _name_group(group: DicomGroup, folder: Path, part: str, held: int) -> str:
    if group.reason or len(group.files) == 1:
        return str(show_place(group.files[0]))
    if held == 1:
        return str(folder)
    if not _PLAIN_UID.fullmatch(group.uid):
        return str(show_place(group.files[0]))
    return f"{folder}#{group.uid}" + (f":{part}" if part else "")
