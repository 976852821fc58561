"""Slices of one series to volumes: acquisitions, cardiac phases and time points are separated, copies counted once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.records.counts import count_noun
from dagman.scans.dicom.geometry import are_even, find_shared_places
from dagman.scans.dicom.headers import Header, read_data_set
from dagman.scans.dicom.pixels import decode_frames
from dagman.scans.faults import explain_faults

_TIMES = ("trigger time", "acquisition time")
"""Tags that may differ from slice to slice: at each place, the first is of the first phase."""

_COUNTED = ("acquisition time", "folder")
"""Tags whose values do not belong into a name: their parts are numbered."""

_MOST_PASSES, _SHORTEST_PASS = 8, 4
"""Passes of the table in one series, and slices of each: a scan that steps has an acquisition of a few slices every step."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Slices that make one volume; `part` is the tag that distinguishes it from others of its series, such as "echo=2";
    `copies` are slices that were left out because a kept one shows the same."""

    headers: tuple[Header, ...]
    part: str = ""
    copies: tuple[Header, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on it."""
        count = len(self.copies)
        if not count:
            return ()
        return (f"{count_noun(count, 'slice')} exported twice with identical pixels; counted once",)


def part_slices(headers: Sequence[Header]) -> list[Volume]:
    """Volumes of slices that are alike in orientation, pixel size and matrix.

    Slices that share a place with equal tags and equal pixels are copies. Those that share a place otherwise are parted by
    the first tag (or two) that leaves each part without repeats, best with each part even; then by their time at each place.
    Slices that are uneven as a whole are parted by acquisition where each is even. What no tag separates stays together, and
    is refused when it is read.
    """
    if len(headers) < 2:
        return [Volume(headers=tuple(headers))]
    kept, copies = _drop_copies(headers, lambda header: header.volume_keys[:-1])
    parts = _part_by_tags(kept) if _repeat(kept) else _part_by_acquisition(kept)
    if parts:
        return [Volume(headers=tuple(part), part=label, copies=_copies_of(part, copies)) for label, part in parts.items()]
    if _repeat(kept):
        kept, more = _drop_copies(kept, lambda header: ())
        copies += more
    return [Volume(headers=tuple(kept), copies=tuple(copy for copy, _ in copies))]


def _copies_of(part: Sequence[Header], copies: Sequence[tuple[Header, Header]]) -> tuple[Header, ...]:
    return tuple(copy for copy, original in copies if any(original is header for header in part))


def _repeat(headers: Sequence[Header]) -> bool:
    return bool(find_shared_places([header.planes[0] for header in headers]))


def _even(headers: Sequence[Header]) -> bool:
    return are_even([header.planes[0] for header in headers])


def _part_by_acquisition(headers: Sequence[Header]) -> dict[str, list[Header]]:
    """Passes of the table that are even each where the whole is not; empty where they are not."""
    if _even(headers):
        return {}
    parts = _collect(headers, ("acquisition",))
    fitting = 1 < len(parts) <= _MOST_PASSES and all(len(part) >= _SHORTEST_PASS and _even(part) for part in parts.values())
    return parts if fitting else {}


def _part_by_tags(headers: Sequence[Header]) -> dict[str, list[Header]]:
    """Parts without repeats by one tag, by two, or by the time at each place; empty where nothing separates them."""
    names = [name for name, _ in headers[0].volume_keys if len({dict(header.volume_keys)[name] for header in headers}) > 1]
    best: dict[str, list[Header]] = {}
    for chosen in (*((name,) for name in names), *itertools.combinations(names, 2)):
        parts = _collect(headers, chosen)
        if all(len(part) > 1 and not _repeat(part) for part in parts.values()):
            if all(_even(part) for part in parts.values()):
                return parts
            best = best or parts
    if best:
        return best
    for name in _TIMES:
        best = best or _rank_times(headers, name)
    return best


def _collect(headers: Sequence[Header], names: tuple[str, ...]) -> dict[str, list[Header]]:
    """Headers by the values of these tags, labelled such as "acquisition=1"."""
    keys = [tuple(dict(header.volume_keys)[name] for name in names) for header in headers]
    numbers = [{value: number for number, value in enumerate(sorted(set(column)), start=1)} for column in zip(*keys, strict=True)]
    parts: dict[str, list[Header]] = {}
    for header, key in zip(headers, keys, strict=True):
        labels = (_label(name, value, of[value]) for name, value, of in zip(names, key, numbers, strict=True))
        parts.setdefault(",".join(labels), []).append(header)
    return parts


def _label(name: str, value: str, number: int) -> str:
    plain = re.sub(r"\.0+$", "", re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-"))
    return f"{name.replace(' ', '-')}={number if name in _COUNTED else plain}"


def _rank_times(headers: Sequence[Header], name: str) -> dict[str, list[Header]]:
    """Phases by the order of times at each place, where all places have as many, at times that differ; else empty."""
    shared = find_shared_places([header.planes[0] for header in headers], alone=True)
    count = len(shared[0])
    parts: dict[str, list[Header]] = {f"{name.replace(' ', '-')}={number}": [] for number in range(1, count + 1)}
    for place in shared:
        try:
            times = [float(dict(headers[index].volume_keys)[name]) for index in place]
        except ValueError:
            return {}
        if len(place) != count or len(set(times)) != count:
            return {}
        for part, (_, index) in zip(parts.values(), sorted(zip(times, place, strict=True)), strict=True):
            part.append(headers[index])
    return parts if count > 1 and len(shared) > 1 else {}


def _drop_copies(headers: Sequence[Header], alike: Callable[[Header], object]) -> tuple[list[Header], list[tuple[Header, Header]]]:
    """Headers without those that share place, `alike` and pixels with an earlier one; and these, each with that earlier one.

    Where two at one place are alike but for their pixels, nothing is dropped: they are no copies, and the rest is not read.
    """
    copies: list[tuple[Header, Header]] = []
    for place in find_shared_places([header.planes[0] for header in headers]):
        groups: dict[object, list[Header]] = {}
        for index in place:
            groups.setdefault(alike(headers[index]), []).append(headers[index])
        for first, *others in groups.values():
            wanted = _read_values(first) if others else None
            for other in others:
                values = _read_values(other)
                if wanted is None or values is None or not np.array_equal(wanted, values):
                    return list(headers), []
                copies.append((other, first))
    dropped = {id(copy) for copy, _ in copies}
    return [header for header in headers if id(header) not in dropped], copies


def _read_values(header: Header) -> NDArray | None:
    """Rescaled pixels; None where they cannot be read, which reading the series will explain."""
    try:
        with explain_faults("cannot be read", where=header.path, do="Export it again"), open(header.path, "rb") as file:
            return decode_frames(read_data_set(file)).values
    except ScanError:
        return None
