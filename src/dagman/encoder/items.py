"""Compute features of many items: whole scans, structures and points.

Each scan is decoded once, and only one is in memory at a time. For an item with a mask, features are pooled inside the structure;
for an item with a point, over its surroundings; otherwise over the whole scan. Items that cannot be used are returned with the
reason, and do not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.embedding import list_columns, pool_crops, pool_scan
from dagman.encoder.encoder import Encoder
from dagman.encoder.feature_cache import FeatureCache, name_input
from dagman.encoder.inputs.opening import Grid, OpenedScan, RefusedItem, explain_refusal, group_by_scan, open_group, open_scans
from dagman.encoder.pooling import Pooling
from dagman.encoder.reader import ScanReader
from dagman.errors import DagmanError
from dagman.scans.discovery import Refusal, find_series
from dagman.scans.pseudonyms import name_file
from dagman.scans.scan import Scan
from dagman.store.crops import FROM_SIZE, Crop, CropShape, CropSpec, choose_crop, cut_structure, cut_surroundings, measure_extent
from dagman.store.manifest import Store
from dagman.store.preparation import PreparedScan
from dagman.tables.items import Item, check_points, read_mask, select_structure
from dagman.tables.patients import state_patients

__all__ = [
    "CropShape",
    "FeatureRow",
    "FeatureTable",
    "OpenItem",
    "RefusedItem",
    "choose_crop",
    "choose_item_crop",
    "embed_items",
    "list_scans",
    "list_seen",
    "list_stored",
    "open_items",
    "stream_features",
]

MEASURED = 64
"""Number of structures that are measured to choose the spacing for a table, evenly spaced over it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureRow:
    """The feature vector (C) of an item, the content hash of its scan, and the fraction of its mask outside the scan (`cut`)."""

    item: Item
    values: NDArray[np.float32] = field(repr=False)
    content_hash: str
    cut: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenItem:
    """An item with its scan and structure.

    Attributes:
        item: The item.
        scan: Its scan.
        inside: Its structure on the grid of the scan, True inside; None if the item has no mask.
        content_hash: Content hash of the scan.
        cut: Fraction of the labelled voxels of its mask that lie outside the scan.
    """

    item: Item
    scan: Scan
    inside: NDArray[np.bool_] | None = field(repr=False)
    content_hash: str
    cut: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """Features of items, in the order in which they were given.

    Attributes:
        items: The items that could be used.
        values: N x C; row i belongs to `items[i]`.
        columns: Names of the C features.
        hashes: Content hash of the scan of each item.
        refused: Items that could not be used.
        cut: Fraction of a mask that lies outside its scan by name of the item, if it is not 0.
    """

    items: tuple[Item, ...]
    values: NDArray[np.float32] = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)
    refused: tuple[RefusedItem, ...] = ()
    cut: dict[str, float] = field(default_factory=dict)

    @classmethod
    def gather(cls, described: Iterable[FeatureRow | RefusedItem], columns: Sequence[str]) -> FeatureTable:
        """Collect rows and rejected items, which may be in any order, in the order of their items."""
        ordered = sorted(described, key=lambda row: row.item.index)
        rows = [row for row in ordered if isinstance(row, FeatureRow)]
        return cls(
            items=tuple(row.item for row in rows),
            values=np.stack([row.values for row in rows]) if rows else np.empty((0, len(columns)), dtype=np.float32),
            columns=tuple(columns),
            hashes=tuple(row.content_hash for row in rows),
            refused=tuple(row for row in ordered if isinstance(row, RefusedItem)),
            cut={row.item.name: row.cut for row in rows if row.cut},
        )

    @property
    def names(self) -> list[str]:
        """Names of the items."""
        return [item.name for item in self.items]

    def __len__(self) -> int:
        return len(self.items)


def list_scans(paths: str | Path | Iterable[str | Path], *, patients: str | Path | None = None) -> tuple[list[Item], list[Refusal]]:
    """List one item for each series below the paths, and the files that were rejected.

    Args:
        paths: Files and folders.
        patients: Patients of the scans, as in `state_patients`.

    Raises:
        ScanError: Nothing was found.
    """
    listing = state_patients(find_series(paths), patients)
    items = [
        Item(
            index=index,
            name=series.source,
            scan=Path(series.source),
            patient=series.patient or name_file(series.files[0]),
            patient_assumed=series.patient_assumed,
        )
        for index, series in enumerate(listing.series)
    ]
    return items, list(listing.refused)


def list_stored(store: Store) -> list[Item]:
    """List one item for each scan of a store."""
    return [
        Item(index=index, name=row.id, scan=row.id, patient=row.patient, patient_assumed=row.patient_from == "assumed")
        for index, row in enumerate(store.rows)
    ]


def embed_items(
    encoder: Encoder,
    items: Iterable[Item],
    *,
    store: Store | None = None,
    pooling: Pooling | None = None,
    crop: CropSpec = FROM_SIZE,
    cache: str | Path | None = None,
    dask: str | None = None,
    on_item: Callable[[int], None] | None = None,
) -> FeatureTable:
    """Compute the features of the items of a table, in its order; the arguments are those of `stream_features`.

    `on_item` is called with the number of items done so far.
    """
    pooling = pooling or Pooling()
    described: list[FeatureRow | RefusedItem] = []
    for row in stream_features(encoder, items, store=store, pooling=pooling, crop=crop, cache=cache, dask=dask):
        described.append(row)
        if on_item is not None:
            on_item(len(described))
    return FeatureTable.gather(described, list_columns(encoder, pooling))


def stream_features(
    encoder: Encoder,
    items: Iterable[Item],
    *,
    store: Store | None = None,
    pooling: Pooling | None = None,
    crop: CropSpec = FROM_SIZE,
    cache: str | Path | None = None,
    dask: str | None = None,
    weights: str = "auto",
) -> Iterator[FeatureRow | RefusedItem]:
    """Compute features scan by scan, as a stream; memory does not grow with the number of items.

    Args:
        encoder: The encoder.
        items: The items.
        store: Store of the scans that items refer to by id; masks and points are then in the coordinates of the stored scan.
        pooling: Stages and statistics.
        crop: Size and spacing of crops around structures and points; by default chosen by the sizes of the structures
            (`choose_crop`), with the same spacing for all items.
        cache: Folder of a `FeatureCache`.
        dask: Address of a Dask scheduler, or "local"; its workers load the encoder by `source` and `weights`, and return the same
            rows in the same order.
        weights: Choice of weights for workers, as in `load_encoder`.

    Raises:
        TableError: Most points lie outside their scans; the message states whether they appear to be LPS.
    """
    pooling = pooling or Pooling()
    items = list(items)
    crop = choose_item_crop(items, encoder.reader, crop)
    if dask is not None:
        from dagman.encoder.cluster.dask_features import stream_on_dask

        yield from stream_on_dask(encoder, items, store, pooling, crop, cache, address=dask, weights=weights)
        return
    vectors = FeatureCache(cache) if cache else None
    grids: list[Grid] = []
    for group in group_by_scan(items):
        yield from embed_group(encoder, group, store, pooling, crop, vectors, grids)
    check_points(grids)


def embed_group(
    encoder: Encoder,
    group: Sequence[Item],
    store: Store | None,
    pooling: Pooling,
    crop: CropSpec,
    cache: FeatureCache | None,
    grids: list[Grid],
) -> Iterator[FeatureRow | RefusedItem]:
    """Compute the features of the items of one scan (see `group_by_scan`).

    Items with points are appended to `grids`, for `check_points`.
    """
    for outcome in open_group(encoder.reader, group, store, grids):
        if isinstance(outcome, RefusedItem):
            yield outcome
            continue
        opened, usable = outcome
        del outcome
        if all(item.mask is None and item.center_mm is None for item in usable):
            # No crops are needed, so release the scan's own voxels before the network needs memory for its activations.
            opened.keep_prepared(encoder.reader)
        for first in range(0, len(usable), encoder.batch):
            given: list[tuple[Item, Crop | PreparedScan]] = []
            for item in usable[first : first + encoder.batch]:
                try:
                    given.append((item, _take_input(opened, item, encoder.reader, crop)))
                except DagmanError as error:
                    yield RefusedItem(item=item, reason=explain_refusal(error, item))
            vectors = _compute_vectors(encoder, [voxels for _, voxels in given], pooling, cache)
            for (item, _), values in zip(given, vectors, strict=True):
                yield FeatureRow(item=item, values=values, content_hash=opened.content_hash, cut=opened.measure_cut(item))


def open_items(
    reader: ScanReader, items: Iterable[Item], *, store: Store | None = None, grids: list[Grid] | None = None
) -> Iterator[OpenItem | RefusedItem]:
    """Open items scan by scan, for callers that crop or measure scans themselves; one scan is in memory at a time.

    Args:
        reader: Reader of the scans.
        items: The items.
        store: Store of the scans that items refer to by id.
        grids: List to which items with points are appended, for a later `check_points`, if the items are part of a table; None to
            check the points here.

    Raises:
        TableError: Most points lie outside their scans (only if `grids` is None).
    """
    for outcome in open_scans(reader, list(items), store, grids):
        if isinstance(outcome, RefusedItem):
            yield outcome
            continue
        opened, group = outcome
        for item in group:
            try:
                inside = opened.find_structure(item) if item.mask is not None else None
            except DagmanError as error:
                yield RefusedItem(item=item, reason=explain_refusal(error, item))
                continue
            cut = opened.measure_cut(item)
            yield OpenItem(item=item, scan=opened.scan, inside=inside, content_hash=opened.content_hash, cut=cut)


def choose_item_crop(items: Sequence[Item], reader: ScanReader, asked: CropSpec = FROM_SIZE) -> CropSpec:
    """Choose the crop for all items of a table: the requested one, or one spacing from the sizes of up to 64 structures.

    The spacing is None if it is chosen for each item: no structure could be measured, or only a side in mm was requested.
    """
    # Reject an invalid request before any scan is read.
    choose_crop(None, asked)
    if asked != FROM_SIZE:
        return asked
    masked = sorted((item for item in items if item.mask is not None), key=lambda item: item.name)
    indices = np.linspace(0, len(masked) - 1, min(MEASURED, len(masked))).round().astype(int)
    extents = []
    for item in (masked[index] for index in indices):
        try:
            mask = read_mask(item)
            extents.append(measure_extent(select_structure(item, mask.voxels), mask.spacing))
        except DagmanError:
            # The item is rejected with this error when its scan is read.
            continue
    return CropSpec(spacing=choose_crop(extents, coarsest=reader.spacing).spacing) if extents else FROM_SIZE


def list_seen(encoder: Encoder, names: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """List the names of scans that were used in pretraining, as identified by content, without duplicates."""
    seen = set(encoder.config.scans_seen)
    return sorted({name for name, content in zip(names, hashes, strict=True) if content in seen})


def _take_input(opened: OpenedScan, item: Item, reader: ScanReader, crop: CropSpec) -> Crop | PreparedScan:
    if item.mask is not None:
        inside = opened.find_structure(item)
        extent = measure_extent(inside, opened.scan.spacing)
        return cut_structure(opened.scan, inside, choose_crop(extent, crop, coarsest=reader.spacing))
    if item.center_mm is not None:
        shape = choose_crop(None, crop, coarsest=reader.spacing)
        return cut_surroundings(opened.scan, item.center_mm, shape)
    return opened.prepare(reader)


def _compute_vectors(
    encoder: Encoder, given: Sequence[Crop | PreparedScan], pooling: Pooling, cache: FeatureCache | None
) -> list[NDArray[np.float32]]:
    keys = [name_input(encoder, voxels, pooling) for voxels in given] if cache else []
    cached: list[NDArray[np.float32] | None] = [cache.get(key) for key in keys] if cache else [None] * len(given)
    missing = [index for index, vector in enumerate(cached) if vector is None]
    crops = [(index, crop) for index in missing if isinstance(crop := given[index], Crop)]
    for (index, _), vector in zip(crops, pool_crops(encoder, [crop for _, crop in crops], pooling), strict=True):
        cached[index] = vector
    for index in missing:
        if isinstance(prepared := given[index], PreparedScan):
            cached[index] = pool_scan(encoder, prepared, pooling)
    vectors = [vector for vector in cached if vector is not None]
    if cache:
        for index in missing:
            cache.put(keys[index], vectors[index])
    return vectors
