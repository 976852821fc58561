"""Where the scans of a store came from: how a preparation knows a source again, that it changed, is gone, or was refused.

The journal holds what is needed for that, and no path: places are names under the user's key (`records.key`). In a store from
before there were keys they are plain hashes, as its pseudonyms are, and whoever guesses a path can confirm it.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dagman.records.hashes import hash_bytes, hash_file
from dagman.records.key import Key
from dagman.scans.archives import show_place, stat_place
from dagman.scans.dicom import parse_name
from dagman.scans.discovery import Series
from dagman.store.manifest import ManifestRow

_BREAK = "\x1f"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A series as a store remembers it.

    `place` is where it lies, and stays when its files change; `root` the given path it was found below; `listed` its name in
    `rejected.csv`. `source_hash` is of paths, sizes and times of writing; `stamp` what a copy that keeps them cannot keep: the
    files' numbers, and the times of their last change as the system counts it.
    """

    source_hash: str
    place: str = ""
    root: str = ""
    listed: str = ""
    stamp: str = ""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A source with the id of the scan that it gave, and the hash of the bytes of its files ("" where it was not kept)."""

    id: str
    source: Source
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a row of the journal holds it."""
        return {"id": self.id, **asdict(self.source), "digest": self.digest}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Origin:
        """From a row of the journal; those of earlier releases know the `source_hash` alone."""
        known = {one.name: row[one.name] for one in fields(Source) if one.name in row}
        return cls(id=row["id"], source=Source(**known), digest=row.get("digest", ""))


@dataclass(eq=False)
class Origins:
    """The latest origin of each place."""

    by_place: dict[str, Origin] = field(default_factory=dict)
    "Those of earlier releases by their `source_hash`."
    by_id: dict[str, set[str]] = field(default_factory=dict)
    "Places that give a scan."

    @classmethod
    def read(cls, rows: Mapping[str, ManifestRow], journal: Iterable[Mapping[str, Any]]) -> Origins:
        """Of a store's rows and its journal, in the journal's order."""
        origins, mentioned = cls(), set()
        for value in journal:
            if "source_hash" in value and "id" in value:
                origins.add(Origin.from_json(value))
                mentioned.add(value["id"])
        for row in rows.values():
            # The journal was lost; a scan that it mentions, and that has no origin now, was replaced.
            if row.id not in mentioned:
                origins.add(Origin(id=row.id, source=Source(source_hash=row.source_hash)))
        return origins

    def find(self, source: Source) -> Origin | None:
        """What the source's place gave last."""
        return self.by_place.get(source.place) or self.by_place.get(source.source_hash)

    def add(self, origin: Origin) -> None:
        """Take the place of what this origin's place gave before."""
        place = origin.source.place or origin.source.source_hash
        for earlier in {place, origin.source.source_hash} & self.by_place.keys():
            self.by_id[self.by_place.pop(earlier).id].discard(earlier)
        self.by_place[place] = origin
        self.by_id.setdefault(origin.id, set()).add(place)

    def list_of(self, scan_id: str) -> list[Origin]:
        """The origins of a scan."""
        return [self.by_place[place] for place in sorted(self.by_id.get(scan_id, ()))]

    def list_vanished(self, seen: Iterable[Source], roots: Iterable[str]) -> list[str]:
        """Ids of scans whose sources lay below one of `roots`, and none of which is among those `seen`."""
        places, given = {one.place for one in seen}, set(roots)
        living = {origin.id for place, origin in self.by_place.items() if place in places}
        gone = {origin.id for place, origin in self.by_place.items() if place not in places and origin.source.root in given}
        return sorted(gone - living)


@dataclass(frozen=True, eq=False)
class EarlierRefusals:
    """Reasons of earlier preparations, so that what cannot be used is not read again each time."""

    reasons: dict[tuple[str, str, str, str], str] = field(default_factory=dict)

    @classmethod
    def read(cls, journal: Iterable[Mapping[str, Any]]) -> EarlierRefusals:
        """Of a store's journal."""
        return cls({_name_refusal(row): row["refused"] for row in journal if "refused" in row})

    def find(self, series: Series, source: Source) -> str | None:
        """The reason, if nothing has changed: neither the files, nor what is asked for, nor how dagman reads and judges."""
        return self.reasons.get(_name_refusal(describe_refusal(series, source, "")))


def describe_refusal(series: Series, source: Source, reason: str) -> dict[str, Any]:
    """A row of the journal."""
    return {"refused": reason, "patient": series.patient, "rules": _hash_rules(series), **asdict(source)}


def may_be_kept(series: Series, reason: str) -> bool:
    """Whether a reason can stand in the journal, which names no file."""
    return not any(name in reason for path in series.files for name in (path.name, str(path)))


def describe_sources(series: Sequence[Series], given: Sequence[Path], key: Key | None) -> dict[str, Source]:
    """The source of each series by its name; `given` are the paths they were found below."""
    roots = {path: hide_name(str(path.resolve()), key) for path in given if parse_name(path) is None}
    places = [_locate(one) for one in series]
    several = Counter(places)
    return {
        one.source: _describe(
            one,
            place=hide_name(place if several[place] == 1 else f"{place}{_BREAK}{_resolve(one.files[0])}", key),
            root=next((root for path, root in roots.items() if show_place(one.files[0]).is_relative_to(path)), ""),
            listed=hide_name(one.source, key),
        )
        for one, place in zip(series, places, strict=True)
    }


def name_roots(given: Sequence[Path], key: Key | None) -> set[str]:
    """The given paths as `Source.root` holds them; a name such as `folder#uid` is not one."""
    return {hide_name(str(path.resolve()), key) for path in given if parse_name(path) is None}


def hide_name(name: str, key: Key | None) -> str:
    """A path or name as the journal holds it."""
    return key.name(name) if key is not None else hash_bytes(name.encode("utf-8", "surrogateescape"))[:16]


def hash_files(files: Sequence[Path]) -> str:
    """A hash of the bytes of all files, in order."""
    return hash_bytes("".join(hash_file(path) for path in files).encode())


def _describe(series: Series, *, place: str, root: str, listed: str) -> Source:
    written, changed = [], []
    for path in series.files:
        status = stat_place(path)
        # The times in it (to the nanosecond) keep a guessed path from being confirmed.
        written.append(f"{_resolve(path)}{_BREAK}{status.st_size}{_BREAK}{status.st_mtime_ns}")
        changed.append(f"{status.st_ino}{_BREAK}{status.st_ctime_ns}")
    source_hash = hash_bytes("\x1e".join(written).encode())
    return Source(source_hash=source_hash, stamp=hash_bytes("\x1e".join(changed).encode()), place=place, root=root, listed=listed)


def _locate(series: Series) -> str:
    """Where a series lies: its file, or its folder, UID and part, whatever its slices are called."""
    if len(series.files) == 1 or not series.uid:
        return str(_resolve(series.files[0]))
    folder = os.path.commonpath([_resolve(path).parent for path in series.files])
    named = parse_name(series.source)
    return f"{folder}{_BREAK}{series.uid}{_BREAK}{named.part if named else ''}"


def _resolve(path: Path) -> Path:
    """Without links; a member of an archive by its name there, which stays when the archive is unpacked anew."""
    return show_place(path).resolve()


def _name_refusal(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return row["place"], row["source_hash"], row["stamp"], row["rules"]


def _hash_rules(series: Series) -> str:
    return hash_bytes(_BREAK.join([_hash_readers(), str(series.modality), series.tilt, str(series.widest_gap)]).encode())


@functools.cache
def _hash_readers() -> str:
    """Of the code that reads and judges: a version stays the same for a while, and its rules do not."""
    package = Path(__file__).parents[1]
    return hash_files([path for folder in ("scans", "store") for path in sorted((package / folder).rglob("*.py"))])
