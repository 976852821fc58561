"""Partitions the slices of a series into volumes (acquisitions, cardiac phases, time points), and drops copies."""

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
"""Tags that may differ between all slices; the earliest slice at each position belongs to the first phase."""

_COUNTED = ("acquisition time", "folder")
"""Tags whose values should not appear in a name, so that their parts are numbered."""

_MOST_PASSES, _SHORTEST_PASS = 8, 4
"""Limits on the number of table passes in a series and of slices in each. A step-and-shoot scan has an acquisition of a few slices
at every step, which are not separate volumes."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """The slices of one volume."""

    headers: tuple[Header, ...]
    part: str = ""
    'The tag that distinguishes it from other volumes of its series, such as "echo=2".'
    copies: tuple[Header, ...] = ()
    "Slices that were dropped because they are identical to one of `headers`."

    @property
    def notes(self) -> tuple[str, ...]:
        """A note on copies, if there are any."""
        count = len(self.copies)
        if not count:
            return ()
        return (f"{count_noun(count, 'slice')} exported twice with identical pixels; counted once",)


def part_slices(headers: Sequence[Header]) -> list[Volume]:
    """Partition slices of equal orientation, pixel size and matrix into volumes.

    Slices at the same position with equal tags and pixels are copies. If other slices share a position, the slices are separated by
    the first tag, or pair of tags, that leaves no shared positions, preferably with evenly spaced slices; failing that, by their
    time at each position. Slices that are unevenly spaced as a whole are separated by acquisition if each is evenly spaced. Slices
    that no tag separates stay together, and are refused when they are read.
    """
    if len(headers) < 2:
        return [Volume(headers=tuple(headers))]
    kept, copies = _drop_copies(headers, lambda header: header.volume_keys[:-1])
    parts = _part_by_tags(kept) if _share_positions(kept) else _part_by_acquisition(kept)
    if parts:
        return [Volume(headers=tuple(part), part=label, copies=_copies_of(part, copies)) for label, part in parts.items()]
    if _share_positions(kept):
        kept, more = _drop_copies(kept, lambda header: ())
        copies += more
    return [Volume(headers=tuple(kept), copies=tuple(copy for copy, _ in copies))]


def _copies_of(part: Sequence[Header], copies: Sequence[tuple[Header, Header]]) -> tuple[Header, ...]:
    return tuple(copy for copy, original in copies if any(original is header for header in part))


def _share_positions(headers: Sequence[Header]) -> bool:
    return bool(find_shared_places([header.planes[0] for header in headers]))


def _are_even(headers: Sequence[Header]) -> bool:
    return are_even([header.planes[0] for header in headers])


def _part_by_acquisition(headers: Sequence[Header]) -> dict[str, list[Header]]:
    """Separate passes of the table that are each evenly spaced while the whole is not; {} if there are none."""
    if _are_even(headers):
        return {}
    parts = _collect(headers, ("acquisition",))
    are_passes = 1 < len(parts) <= _MOST_PASSES
    return parts if are_passes and all(len(part) >= _SHORTEST_PASS and _are_even(part) for part in parts.values()) else {}


def _part_by_tags(headers: Sequence[Header]) -> dict[str, list[Header]]:
    """Separate slices by one tag, two tags, or the time at each position, so that no part repeats a position; {} if impossible."""
    names = [name for name, _ in headers[0].volume_keys if len({dict(header.volume_keys)[name] for header in headers}) > 1]
    best: dict[str, list[Header]] = {}
    for chosen in (*((name,) for name in names), *itertools.combinations(names, 2)):
        parts = _collect(headers, chosen)
        if all(len(part) > 1 and not _share_positions(part) for part in parts.values()):
            if all(_are_even(part) for part in parts.values()):
                return parts
            best = best or parts
    if best:
        return best
    for name in _TIMES:
        best = best or _rank_times(headers, name)
    return best


def _collect(headers: Sequence[Header], names: tuple[str, ...]) -> dict[str, list[Header]]:
    """Group headers by the values of these tags, with labels such as "acquisition=1"."""
    keys = [tuple(dict(header.volume_keys)[name] for name in names) for header in headers]
    numbers = [{value: number for number, value in enumerate(sorted(set(column)), start=1)} for column in zip(*keys, strict=True)]
    parts: dict[str, list[Header]] = {}
    for header, key in zip(headers, keys, strict=True):
        labels = (_label(name, value, number_of[value]) for name, value, number_of in zip(names, key, numbers, strict=True))
        parts.setdefault(",".join(labels), []).append(header)
    return parts


def _label(name: str, value: str, number: int) -> str:
    plain = re.sub(r"\.0+$", "", re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-"))
    return f"{name.replace(' ', '-')}={number if name in _COUNTED else plain}"


def _rank_times(headers: Sequence[Header], name: str) -> dict[str, list[Header]]:
    """Separate phases by the order of times at each position; {} unless all positions have equally many, at different times."""
    shared = find_shared_places([header.planes[0] for header in headers], alone=True)
    count = len(shared[0])
    parts: dict[str, list[Header]] = {f"{name.replace(' ', '-')}={number}": [] for number in range(1, count + 1)}
    for members in shared:
        try:
            times = [float(dict(headers[index].volume_keys)[name]) for index in members]
        except ValueError:
            return {}
        if len(members) != count or len(set(times)) != count:
            return {}
        for part, (_, index) in zip(parts.values(), sorted(zip(times, members, strict=True)), strict=True):
            part.append(headers[index])
    return parts if count > 1 and len(shared) > 1 else {}


def _drop_copies(headers: Sequence[Header], key: Callable[[Header], object]) -> tuple[list[Header], list[tuple[Header, Header]]]:
    """Drop headers with the same position, key and pixels as an earlier one; return the others, and pairs (dropped, earlier).

    If two have the same position and key but different pixels, they are not copies; then nothing is dropped, and the remaining
    pixels are not read.
    """
    copies: list[tuple[Header, Header]] = []
    for members in find_shared_places([header.planes[0] for header in headers]):
        groups: dict[object, list[Header]] = {}
        for index in members:
            groups.setdefault(key(headers[index]), []).append(headers[index])
        for first, *others in groups.values():
            expected = _read_values(first) if others else None
            for other in others:
                values = _read_values(other)
                if expected is None or values is None or not np.array_equal(expected, values):
                    return list(headers), []
                copies.append((other, first))
    dropped = {id(copy) for copy, _ in copies}
    return [header for header in headers if id(header) not in dropped], copies


def _read_values(header: Header) -> NDArray | None:
    """Read the rescaled pixels; None if that fails, the reason for which is reported when the series is read."""
    try:
        with explain_faults("cannot be read", where=header.path, do="Export it again"), open(header.path, "rb") as file:
            return decode_frames(read_data_set(file)).values
    except ScanError:
        return None
