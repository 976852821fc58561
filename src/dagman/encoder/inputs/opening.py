"""Open scans one at a time, with the items of a table that refer to them; unusable items are returned with the reason."""

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
"""An item with a point, and the shape and affine of its scan."""


@dataclass(frozen=True, kw_only=True)
class RefusedItem:
    """An item that cannot be used, and the reason."""

    item: Item
    reason: str


@dataclass(kw_only=True)
class OpenedScan:
    """A scan while its items are processed: its own voxels for crops, and its prepared voxels once they are needed.

    Attributes:
        scan: The scan on its own grid.
        prepared: The prepared scan; None until it is needed.
        content_hash: Content hash of the scan.
        stored: Whether the scan comes from a store.
        mask: The label map that was read last, as many rows of a table may share one.
        cut: Fraction of each label map that lies outside the scan.
    """

    scan: Scan
    prepared: PreparedScan | None
    content_hash: str
    stored: bool
    mask: tuple[tuple[Path, str | int | None], NDArray] | None = None
    cut: dict[Path, float] = field(default_factory=dict)

    @classmethod
    def open(cls, reader: ScanReader, scan: Path | str, store: Store | None) -> OpenedScan:
        """Open a file, or a stored scan by its id.

        Raises:
            DagmanError: The scan cannot be used.
        """
        if isinstance(scan, str):
            if store is None:
                raise StoreError(f"{scan!r} is the id of a stored scan, but no store was given", do="Pass --store STORE")
            return cls.take(reader, (store, scan))
        return cls.take(reader, scan)

    @classmethod
    def take(cls, reader: ScanReader, scan: ScanLike) -> OpenedScan:
        """Open a scan in any form; raises the errors of `open`."""
        if isinstance(scan, PreparedScan) or (isinstance(scan, tuple) and isinstance(scan[0], Store)):
            prepared = reader.prepare(scan)
            return cls(scan=reader.read(prepared), prepared=prepared, content_hash=prepared.content_hash, stored=True)
        opened = reader.read(scan)
        return cls(scan=opened, prepared=None, content_hash=hash_scan(opened), stored=False)

    def prepare(self, reader: ScanReader) -> PreparedScan:
        """Prepare the scan for the encoder, once."""
        if self.prepared is None:
            self.prepared = prepare_scan(self.scan, reader.preparation)
        return self.prepared

    def keep_prepared(self, reader: ScanReader) -> None:
        """Prepare the scan and release its own voxels, if only the prepared ones are needed."""
        with contextlib.suppress(DagmanError):
            self.prepare(reader)
            self.scan = replace(self.scan, voxels=self.scan.voxels[:1, :1, :1].copy())

    def find_structure(self, item: Item) -> NDArray[np.bool_]:
        """Read the structure of an item on the grid of `scan`, X Y Z, True inside.

        Raises:
            DagmanError: The mask is missing or cannot be used.
        """
        if item.mask is None:
            raise TableError("has no mask", where=item.name)
        if self.mask is None or self.mask[0] != (item.mask, item.structure):
            labels = read_mask(item)
            stored = self.prepared if self.stored else None
            placed = align_mask(item, labels, self.scan) if stored is None else prepare_mask(labels, stored)
            self.mask = ((item.mask, item.structure), placed)
            # A stored scan is cropped and resampled, so its voxels cannot be compared with those of the label map.
            self.cut[item.mask] = measure_cut(labels, placed) if stored is None else 0.0
        return select_structure(item, self.mask[1])

    def measure_cut(self, item: Item) -> float:
        """Return the fraction of an item's mask outside the scan; call `find_structure` first."""
        return self.cut.get(item.mask, 0.0) if item.mask is not None else 0.0


def open_scans(
    reader: ScanReader, items: Sequence[Item], store: Store | None, grids: list[Grid] | None = None
) -> Iterator[tuple[OpenedScan, Sequence[Item]] | RefusedItem]:
    """Yield each scan, read once, with its items; items of scans that cannot be used are rejected.

    Args:
        reader: Reader of the scans.
        items: The items.
        store: Store of the scans that items refer to by id.
        grids: List to which items with points are appended, for a later `check_points`, if the items are part of a table; None to
            check the points at the end.

    Raises:
        TableError: Most points lie outside their scans (only if `grids` is None).
    """
    points: list[Grid] = [] if grids is None else grids
    for group in group_by_scan(items):
        yield from open_group(reader, group, store, points)
    if grids is None:
        check_points(points)


def open_group(
    reader: ScanReader, group: Sequence[Item], store: Store | None, grids: list[Grid]
) -> Iterator[tuple[OpenedScan, Sequence[Item]] | RefusedItem]:
    """Yield the scan of a group with its items, or reject its items; items with points are appended to `grids`."""
    try:
        opened = OpenedScan.open(reader, group[0].scan, store)
    except DagmanError as error:
        yield from (RefusedItem(item=item, reason=explain_refusal(error, item)) for item in group)
        return
    grids += [(item, opened.scan.shape, opened.scan.affine) for item in group if item.mask is None and item.center_mm]
    yield opened, group


def explain_refusal(error: DagmanError, item: Item) -> str:
    """Return the message of an error without the name of the item, which is reported separately."""
    return str(error).removeprefix(f"{item.name}: ")


def group_by_scan(items: Sequence[Item]) -> list[list[Item]]:
    """Group items by scan, in the order of processing."""
    groups: dict[Path | str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.scan, []).append(item)
    # Sort by mask within a scan, so that each label map is read once.
    return [sorted(group, key=lambda item: str(item.mask)) for group in groups.values()]
