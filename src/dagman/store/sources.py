"""Records where the scans of a store came from, to recognise sources that are unchanged, changed, gone, or were rejected before.

The journal holds what is needed for this, but no path: places are pseudonyms under the user's key (`records.key`). In a store from
before keys were introduced, they are plain hashes, like its pseudonyms, by which a guessed path can be confirmed.
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
    """A series as recorded in a store; all fields are hashes or pseudonyms."""

    source_hash: str
    "Of paths, sizes and modification times."
    place: str = ""
    "Its location, which stays the same when its files change."
    root: str = ""
    "The given path in which it was found."
    listed: str = ""
    "Its name in `rejected.csv`."
    stamp: str = ""
    "Of inode numbers and ctimes, which differ even in a copy that keeps paths, sizes and modification times."


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A source, the id of the scan made from it, and the hash of the bytes of its files ("" if not recorded)."""

    id: str
    source: Source
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the origin as a row of the journal."""
        return {"id": self.id, **asdict(self.source), "digest": self.digest}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Origin:
        """Create an origin from a row of the journal; rows of earlier versions have only `source_hash`."""
        known = {column.name: row[column.name] for column in fields(Source) if column.name in row}
        return cls(id=row["id"], source=Source(**known), digest=row.get("digest", ""))


@dataclass(eq=False)
class Origins:
    """The latest origin of each place."""

    by_place: dict[str, Origin] = field(default_factory=dict)
    "Origins by place, or by `source_hash` in rows of earlier versions."
    by_id: dict[str, set[str]] = field(default_factory=dict)
    "Places of each scan, by its id."

    @classmethod
    def read(cls, rows: Mapping[str, ManifestRow], journal: Iterable[Mapping[str, Any]]) -> Origins:
        """Collect the origins in a store's rows and journal, in the journal's order."""
        origins, mentioned = cls(), set()
        for value in journal:
            if "source_hash" in value and "id" in value:
                origins.add(Origin.from_json(value))
                mentioned.add(value["id"])
        for row in rows.values():
            # The journal was lost. A scan that it mentions, but that has no origin now, was replaced.
            if row.id not in mentioned:
                origins.add(Origin(id=row.id, source=Source(source_hash=row.source_hash)))
        return origins

    def find(self, source: Source) -> Origin | None:
        """Return the latest origin of the source's place."""
        return self.by_place.get(source.place) or self.by_place.get(source.source_hash)

    def add(self, origin: Origin) -> None:
        """Add an origin, which replaces the previous one of the same place."""
        place = origin.source.place or origin.source.source_hash
        for earlier in {place, origin.source.source_hash} & self.by_place.keys():
            self.by_id[self.by_place.pop(earlier).id].discard(earlier)
        self.by_place[place] = origin
        self.by_id.setdefault(origin.id, set()).add(place)

    def list_of(self, scan_id: str) -> list[Origin]:
        """List the origins of a scan."""
        return [self.by_place[place] for place in sorted(self.by_id.get(scan_id, ()))]

    def list_vanished(self, seen: Iterable[Source], roots: Iterable[str]) -> list[str]:
        """List the ids of scans whose sources were found in one of `roots` before, but are all missing from `seen`."""
        places, given = {source.place for source in seen}, set(roots)
        living = {origin.id for place, origin in self.by_place.items() if place in places}
        gone = {origin.id for place, origin in self.by_place.items() if place not in places and origin.source.root in given}
        return sorted(gone - living)


@dataclass(frozen=True, eq=False)
class EarlierRefusals:
    """Reasons of earlier preparations, so that unusable files are not read again each time."""

    reasons: dict[tuple[str, str, str, str], str] = field(default_factory=dict)

    @classmethod
    def read(cls, journal: Iterable[Mapping[str, Any]]) -> EarlierRefusals:
        """Collect the refusals in a store's journal."""
        return cls({_name_refusal(row): row["refused"] for row in journal if "refused" in row})

    def find(self, series: Series, source: Source) -> str | None:
        """Return the reason, unless the files, the settings, or dagman's code that reads and judges have changed since."""
        return self.reasons.get(_name_refusal(describe_refusal(series, source, "")))


def describe_refusal(series: Series, source: Source, reason: str) -> dict[str, Any]:
    """Return a refusal as a row of the journal."""
    return {"refused": reason, "patient": series.patient, "rules": _hash_rules(series), **asdict(source)}


def may_be_kept(series: Series, reason: str) -> bool:
    """Return whether a reason may be written to the journal, which must not contain file names."""
    return not any(name in reason for path in series.files for name in (path.name, str(path)))


def describe_sources(series: Sequence[Series], given: Sequence[Path], key: Key | None) -> dict[str, Source]:
    """Describe the source of each series, by the name of the series; `given` are the paths in which they were found."""
    roots = {path: hide_name(str(path.resolve()), key) for path in given if parse_name(path) is None}
    places = [_locate(one) for one in series]
    counts = Counter(places)
    return {
        one.source: _describe(
            one,
            place=hide_name(place if counts[place] == 1 else f"{place}{_BREAK}{_resolve(one.files[0])}", key),
            root=next((root for path, root in roots.items() if show_place(one.files[0]).is_relative_to(path)), ""),
            listed=hide_name(one.source, key),
        )
        for one, place in zip(series, places, strict=True)
    }


def name_roots(given: Sequence[Path], key: Key | None) -> set[str]:
    """Return the given paths in the form of `Source.root`, without names of series such as `folder#uid`."""
    return {hide_name(str(path.resolve()), key) for path in given if parse_name(path) is None}


def hide_name(name: str, key: Key | None) -> str:
    """Return the pseudonym (or hash) of a path or name for the journal."""
    return key.name(name) if key is not None else hash_bytes(name.encode("utf-8", "surrogateescape"))[:16]


def hash_files(files: Sequence[Path]) -> str:
    """Return a hash of the bytes of all files, in order."""
    return hash_bytes("".join(hash_file(path) for path in files).encode())


def _describe(series: Series, *, place: str, root: str, listed: str) -> Source:
    written, changed = [], []
    for path in series.files:
        status = stat_place(path)
        # Modification times in nanoseconds prevent a guessed path from being confirmed by its hash.
        written.append(f"{_resolve(path)}{_BREAK}{status.st_size}{_BREAK}{status.st_mtime_ns}")
        changed.append(f"{status.st_ino}{_BREAK}{status.st_ctime_ns}")
    source_hash = hash_bytes("\x1e".join(written).encode())
    return Source(source_hash=source_hash, stamp=hash_bytes("\x1e".join(changed).encode()), place=place, root=root, listed=listed)


def _locate(series: Series) -> str:
    """Return the location of a series: its file, or its folder, UID and part, regardless of the names of its slices."""
    if len(series.files) == 1 or not series.uid:
        return str(_resolve(series.files[0]))
    folder = os.path.commonpath([_resolve(path).parent for path in series.files])
    named = parse_name(series.source)
    return f"{folder}{_BREAK}{series.uid}{_BREAK}{named.part if named else ''}"


def _resolve(path: Path) -> Path:
    """Resolve links; a member of an archive gets its name in the archive, which stays the same if that is unpacked again."""
    return show_place(path).resolve()


def _name_refusal(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return row["place"], row["source_hash"], row["stamp"], row["rules"]


def _hash_rules(series: Series) -> str:
    return hash_bytes(_BREAK.join([_hash_readers(), str(series.modality), series.tilt, str(series.widest_gap)]).encode())


@functools.cache
def _hash_readers() -> str:
    """Hash the code that reads and judges scans, since it may change without a new version number."""
    package = Path(__file__).parents[1]
    return hash_files([path for folder in ("scans", "store") for path in sorted((package / folder).rglob("*.py"))])
