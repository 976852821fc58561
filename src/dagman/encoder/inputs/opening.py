"""Scans opened one at a time with the items of a table that lie in them; what cannot be used is refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.reader import ScanLike, ScanReader
from dagman.errors import DagmanError, StoreError, TableError
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan, hash_scan
from dagman.store.manifest import Store
from dagman.store.preparation import PreparedScan, prepare_mask, prepare_scan
from dagman.tables.items import Item, align_mask, check_points, measure_cut, read_mask, select_structure

Grid = tuple[Item, tuple[int, int, int], Affine]
"""An item with a point, and the shape and place of its scan."""


@dataclass(frozen=True, kw_only=True)
class RefusedItem:
    """An item that was left out, and why."""

    item: Item
    reason: str


@dataclass(kw_only=True)
class OpenedScan:
    """A scan while its items are read: its own voxels for crops, its prepared ones once a whole scan is asked for."""

    scan: Scan
    prepared: PreparedScan | None
    content_hash: str
    stored: bool
    # The label map read last: many rows of a table share one.
    mask: tuple[tuple[Path, str | int | None], NDArray] | None = None
    # The share of each label map that lies outside the scan.
    cut: dict[Path, float] = field(default_factory=dict)

    @classmethod
    def open(cls, reader: ScanReader, scan: Path | str, store: Store | None) -> OpenedScan:
        """A file, or a stored scan by its id; raises DagmanError where it cannot be used."""
        if isinstance(scan, str):
            if store is None:
                raise StoreError(f"{scan!r} is the id of a stored scan, but no store was given", do="Pass --store STORE")
            return cls.take(reader, (store, scan))
        return cls.take(reader, scan)

    @classmethod
    def take(cls, reader: ScanReader, scan: ScanLike) -> OpenedScan:
        """A scan that is at hand in whatever form; raises as `open`."""
        if isinstance(scan, PreparedScan) or (isinstance(scan, tuple) and isinstance(scan[0], Store)):
            prepared = reader.prepare(scan)
            return cls(scan=reader.read(prepared), prepared=prepared, content_hash=prepared.content_hash, stored=True)
        opened = reader.read(scan)
        return cls(scan=opened, prepared=None, content_hash=hash_scan(opened), stored=False)

    def prepare(self, reader: ScanReader) -> PreparedScan:
        """The scan as the encoder reads it."""
        if self.prepared is None:
            self.prepared = prepare_scan(self.scan, reader.preparation)
        return self.prepared

    def keep_prepared(self, reader: ScanReader) -> None:
        """Let go of the scan's own voxels, if it can be prepared: the prepared ones are all that is asked for."""
        with contextlib.suppress(DagmanError):
            self.prepare(reader)
            self.scan = replace(self.scan, voxels=self.scan.voxels[:1, :1, :1].copy())

    def find_structure(self, item: Item) -> NDArray[np.bool_]:
        """An item's structure on the grid of `scan`, X Y Z, True inside; raises DagmanError where it cannot be used."""
        if item.mask is None:
            raise TableError("has no mask", where=item.name)
        if self.mask is None or self.mask[0] != (item.mask, item.structure):
            labels = read_mask(item)
            stored = self.prepared if self.stored else None
            placed = align_mask(item, labels, self.scan) if stored is None else prepare_mask(labels, stored)
            self.mask = ((item.mask, item.structure), placed)
            # A stored scan is cropped to the body, at another spacing: voxels cannot be counted against its own.
            self.cut[item.mask] = measure_cut(labels, placed) if stored is None else 0.0
        return select_structure(item, self.mask[1])

    def measure_cut(self, item: Item) -> float:
        """The share of an item's mask that lies outside the scan; its structure was found before."""
        return self.cut.get(item.mask, 0.0) if item.mask is not None else 0.0


def open_scans(
    reader: ScanReader, items: Sequence[Item], store: Store | None, grids: list[Grid] | None = None
) -> Iterator[tuple[OpenedScan, Sequence[Item]] | RefusedItem]:
    """Each scan, read once, with its items; items of scans that cannot be used are refused. In the end points are judged.

    grids: takes what points are judged by, where these items are a part of a table.
    """
    found: list[Grid] = [] if grids is None else grids
    for group in group_by_scan(items):
        yield from open_group(reader, group, store, found)
    if grids is None:
        check_points(found)


def open_group(
    reader: ScanReader, group: Sequence[Item], store: Store | None, grids: list[Grid]
) -> Iterator[tuple[OpenedScan, Sequence[Item]] | RefusedItem]:
    """The scan of a group with its items, or these refused; `grids` takes what their points are judged by."""
    try:
        opened = OpenedScan.open(reader, group[0].scan, store)
    except DagmanError as error:
        yield from (RefusedItem(item=item, reason=explain_refusal(error, item)) for item in group)
        return
    grids += [(item, opened.scan.shape, opened.scan.affine) for item in group if item.mask is None and item.center_mm]
    yield opened, group


def explain_refusal(error: DagmanError, item: Item) -> str:
    """The error without the name of the item, which stands beside it."""
    return str(error).removeprefix(f"{item.name}: ")


def group_by_scan(items: Sequence[Item]) -> list[list[Item]]:
    """Items that lie in one scan, in the order in which they are computed."""
    groups: dict[Path | str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.scan, []).append(item)
    # Within a scan by mask, so that each label map is read once.
    return [sorted(group, key=lambda item: str(item.mask)) for group in groups.values()]
