"""Caches headers of DICOM files between discoveries, in a file next to the output of the command.

A DICOM file is recognised by its path, size and times, and read again if it has changed. The cache identifies nobody: paths, UIDs
and PatientIDs are pseudonyms under the user's key, and times of day are shifted by a secret amount per study, which keeps their
order. Cached headers and new ones are pseudonymised in the same way, so that they can be grouped together.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dagman.records.files import write_text
from dagman.records.hashes import hash_bytes, hash_file
from dagman.records.key import find_key
from dagman.scans.archives import show_place
from dagman.scans.dicom.geometry import Plane
from dagman.scans.dicom.headers import Header
from dagman.scans.dicom.naming import read_series_uid
from dagman.scans.dicom.series import DicomGroup

HEADERS = "headers.jsonl"
"""Name of the file. It may be deleted at any time."""
_FORMAT = 1
_TIME, _FOLDER = "acquisition time", "folder"
_PLAIN_TIME = re.compile(r"\d{6}(\.\d{1,6})?", re.ASCII)
_WIDEST_SHIFT = 760_000
"""A time (at most 240,000 as a number) shifted by less than this keeps six digits; with six decimals, it is exact as a float."""


class KeptHeaders:
    """The headers in a cache file; a file that is damaged, or of a different key or version of dagman, counts as empty."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._key = find_key()
        self._cached = self._read()
        self._seen: dict[str, str] = {}
        self._names: dict[Path, str] = {}

    def find(self, path: Path) -> Header | None:
        """Return the pseudonymised header of a file, or None if it is not cached or has changed."""
        name = self._name_state(path)
        if name is None or (row := self._cached.get(name)) is None:
            return None
        self._seen[name] = row
        return _unpack(path, json.loads(row))

    def take(self, header: Header) -> Header:
        """Pseudonymise a header that has just been read, and cache it if `find` was called for its file before."""
        hidden = self._hide(header)
        name, time = self._names.get(header.path), dict(header.volume_keys)[_TIME]
        if name is not None and (not time or _PLAIN_TIME.fullmatch(time)):
            self._seen[name] = json.dumps(_pack(hidden), separators=(",", ":"))
        return hidden

    def reveal(self, groups: Sequence[DicomGroup]) -> list[DicomGroup]:
        """Restore the SeriesInstanceUIDs of groups, by which the user knows them, by reading one file of each."""
        return [replace(group, uid=(read_series_uid(group.files[0]) or "") if group.uid else "") for group in groups]

    def write(self) -> None:
        """Replace the cache by the headers of this discovery if they differ; raises OSError."""
        if not self._seen or self._seen.keys() == self._cached.keys():
            return
        rows = "".join(f"{name} {row}\n" for name, row in sorted(self._seen.items()))
        write_text(self.path, f"{self._describe(rows)}\n{rows}")

    def _read(self) -> dict[str, str]:
        try:
            first, _, rows = self.path.read_text(encoding="ascii").partition("\n")
        except (OSError, ValueError):
            return {}
        if first != self._describe(rows):
            return {}
        return {name: row for name, _, row in (line.partition(" ") for line in rows.splitlines())}

    def _describe(self, rows: str) -> str:
        """The first line, which identifies the key, the code and the content of the rows."""
        key = None if self._key is None else self._key.fingerprint
        return json.dumps({"headers": _FORMAT, "key": key, "readers": _hash_readers(), "hash": hash_bytes(rows.encode("ascii"))})

    def _name_state(self, path: Path) -> str | None:
        """A name for the present state of a file; None if it cannot be recognised later, such as a file from an archive."""
        if show_place(path) != path:
            return None
        try:
            status = os.stat(path)
        except OSError:
            return None
        # Includes ctime, since an anonymiser may restore the modification time.
        state = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        name = self._names[path] = self._name(state)
        return name

    def _name(self, text: str) -> str:
        return self._key.name(text) if self._key is not None else hash_bytes(text.encode("utf-8", "surrogateescape"))[:16]

    def _hide(self, header: Header) -> Header:
        uids = (header.study_uid, header.series_uid, header.instance_uid)
        study, series, instance = (self._name(uid) if uid else "" for uid in uids)
        keys = tuple((name, self._shift(value, study) if name == _TIME else value) for name, value in header.volume_keys)
        return replace(header, patient_id="", study_uid=study, series_uid=series, instance_uid=instance, volume_keys=keys)

    def _shift(self, time: str, study: str) -> str:
        if not _PLAIN_TIME.fullmatch(time):
            return time
        shift = int(self._name(f"time of day\0{study}"), 16) % _WIDEST_SHIFT
        return f"{int(time[:6]) + shift:06d}{time[6:]}"


def _pack(header: Header) -> list[Any]:
    planes = [[plane.position, plane.orientation, plane.pixel_spacing, plane.rows, plane.columns] for plane in header.planes]
    # The folder follows from the path, which is not stored.
    keys = [pair for pair in header.volume_keys if pair[0] != _FOLDER]
    named = [header.patient, header.names_patient, header.study_uid, header.series_uid, header.instance_uid]
    kind = [header.class_name, header.modality, header.image_type, header.samples, header.is_image, header.is_truncated]
    return [*named, *kind, header.frames, planes, keys]


def _unpack(path: Path, row: list[Any]) -> Header:
    (
        patient,
        names_patient,
        study,
        series,
        instance,
        kind,
        modality,
        image_type,
        samples,
        is_image,
        is_truncated,
        frames,
        planes,
        keys,
    ) = row
    return Header(
        path=path,
        patient_id="",
        patient=patient,
        names_patient=names_patient,
        study_uid=study,
        series_uid=series,
        instance_uid=instance,
        class_name=kind,
        modality=modality,
        image_type=tuple(image_type),
        samples=samples,
        is_image=is_image,
        is_truncated=is_truncated,
        frames=frames,
        planes=tuple(
            Plane(position=tuple(position), orientation=tuple(axes), pixel_spacing=tuple(spacing), rows=rows, columns=columns)
            for position, axes, spacing, rows, columns in planes
        ),
        volume_keys=(*((name, value) for name, value in keys), (_FOLDER, path.parent.as_posix())),
    )


@functools.cache
def _hash_readers() -> str:
    """Hash the code that reads headers, since it may change without a new version number."""
    return hash_bytes("".join(hash_file(path) for path in sorted(Path(__file__).parent.rglob("*.py"))).encode())
