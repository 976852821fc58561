"""Features of many items: whole scans, structures and points; each scan is decoded once, and only one is held at a time.

An item with a mask is a structure, pooled inside it; one with a point is the surroundings of that point; one with neither is
the whole scan. Items that cannot be used are refused by name with the reason; the others go on.
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
"""Structures whose masks are measured to choose a table's spacing, evenly spread over it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureRow:
    """One item's vector (C), the content hash of its scan, and the share of its mask that lies outside the scan (`cut`)."""

    item: Item
    values: NDArray[np.float32] = field(repr=False)
    content_hash: str
    cut: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenItem:
    """An item with what it refers to: its scan, its structure on the scan's grid (True inside; None without a mask).

    cut: the share of its mask's label voxels that lie outside the scan.
    """

    item: Item
    scan: Scan
    inside: NDArray[np.bool_] | None = field(repr=False)
    content_hash: str
    cut: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """Features of items: `values` N x C, `columns` names the C; row i belongs to `items[i]`, in the order they were given."""

    items: tuple[Item, ...]
    values: NDArray[np.float32] = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)
    "Content hash of each item's scan."
    refused: tuple[RefusedItem, ...] = ()
    cut: dict[str, float] = field(default_factory=dict)
    "By name: the share of an item's mask that lies outside its scan, where there is one."

    @classmethod
    def gather(cls, described: Iterable[FeatureRow | RefusedItem], columns: Sequence[str]) -> FeatureTable:
        """Rows and refusals, as they came, in the order of their items."""
        ordered = sorted(described, key=lambda one: one.item.index)
        rows = [one for one in ordered if isinstance(one, FeatureRow)]
        return cls(
            items=tuple(row.item for row in rows),
            values=np.stack([row.values for row in rows]) if rows else np.empty((0, len(columns)), dtype=np.float32),
            columns=tuple(columns),
            hashes=tuple(row.content_hash for row in rows),
            refused=tuple(one for one in ordered if isinstance(one, RefusedItem)),
            cut={row.item.name: row.cut for row in rows if row.cut},
        )

    @property
    def names(self) -> list[str]:
        """Names of the items."""
        return [item.name for item in self.items]

    def __len__(self) -> int:
        return len(self.items)


def list_scans(paths: str | Path | Iterable[str | Path], *, patients: str | Path | None = None) -> tuple[list[Item], list[Refusal]]:
    """One item for each series below the paths, and what was refused; raises ScanError when there is nothing at all.

    patients: whose the scans are, as in `state_patients`.
    """
    found = state_patients(find_series(paths), patients)
    items = [
        Item(
            index=index,
            name=series.source,
            scan=Path(series.source),
            patient=series.patient or name_file(series.files[0]),
            patient_assumed=series.patient_assumed,
        )
        for index, series in enumerate(found.series)
    ]
    return items, list(found.refused)


def list_stored(store: Store) -> list[Item]:
    """One item for each scan of a store."""
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
    """Features of a table's items (`table.items`), in its order; see `stream_features`. on_item: called with how many are done."""
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
    """Features of items as they come, scan by scan; what is held does not grow with their number.

    store: holds the scans that items give as an id; a table's masks and points then refer to the stored scan's place.
    crop: of the crops around structures and points; by default from the structures' size (`choose_crop`), one spacing for
    all items. cache: folder of a `FeatureCache`. dask: by the workers of the Dask scheduler at this address, or of a local one
    ("local"), which load the encoder by its `source` and `weights`; the rows and their order are the same.

    Raises TableError when most points lie outside their scans, saying whether they appear to be LPS.
    """
    pooling = pooling or Pooling()
    items = list(items)
    crop = choose_item_crop(items, encoder.reader, crop)
    if dask is not None:
        from dagman.encoder.cluster.dask_features import stream_on_dask

        yield from stream_on_dask(encoder, items, store, pooling, crop, cache, address=dask, weights=weights)
        return
    kept = FeatureCache(cache) if cache else None
    grids: list[Grid] = []
    for group in group_by_scan(items):
        yield from embed_group(encoder, group, store, pooling, crop, kept, grids)
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
    """Features of the items of one scan (see `group_by_scan`); `grids` takes what their points are judged by."""
    for found in open_group(encoder.reader, group, store, grids):
        if isinstance(found, RefusedItem):
            yield found
            continue
        opened, usable = found
        del found
        if all(item.mask is None and item.center_mm is None for item in usable):
            # Nothing is cut from the scan itself; a long one would lie beside the network's activations.
            opened.keep_prepared(encoder.reader)
        for first in range(0, len(usable), encoder.batch):
            given: list[tuple[Item, Crop | PreparedScan]] = []
            for item in usable[first : first + encoder.batch]:
                try:
                    given.append((item, _take_input(opened, item, encoder.reader, crop)))
                except DagmanError as error:
                    yield RefusedItem(item=item, reason=explain_refusal(error, item))
            vectors = _compute_vectors(encoder, [one for _, one in given], pooling, cache)
            for (item, _), values in zip(given, vectors, strict=True):
                yield FeatureRow(item=item, values=values, content_hash=opened.content_hash, cut=opened.measure_cut(item))


def open_items(
    reader: ScanReader, items: Iterable[Item], *, store: Store | None = None, grids: list[Grid] | None = None
) -> Iterator[OpenItem | RefusedItem]:
    """Items as they come, scan by scan, for those who cut or measure themselves; one scan is held at a time.

    grids: takes what points are judged by, where these items are a part of a table. Without it raises TableError when most points
    lie outside their scans, saying whether they appear to be LPS.
    """
    for found in open_scans(reader, list(items), store, grids):
        if isinstance(found, RefusedItem):
            yield found
            continue
        opened, group = found
        for item in group:
            try:
                inside = opened.find_structure(item) if item.mask is not None else None
            except DagmanError as error:
                yield RefusedItem(item=item, reason=explain_refusal(error, item))
                continue
            cut = opened.measure_cut(item)
            yield OpenItem(item=item, scan=opened.scan, inside=inside, content_hash=opened.content_hash, cut=cut)


def choose_item_crop(items: Sequence[Item], reader: ScanReader, asked: CropSpec = FROM_SIZE) -> CropSpec:
    """What all crops of a table have in common: as asked for, or one spacing from the sizes of up to 64 of its structures.

    The spacing is None where it is left to each item: nothing could be measured, or a side in mm alone was asked for.
    """
    # Refuses what cannot be before a scan is read.
    choose_crop(None, asked)
    if asked != FROM_SIZE:
        return asked
    masked = sorted((item for item in items if item.mask is not None), key=lambda item: item.name)
    places = np.linspace(0, len(masked) - 1, min(MEASURED, len(masked))).round().astype(int)
    extents = []
    for item in (masked[place] for place in places):
        try:
            mask = read_mask(item)
            extents.append(measure_extent(select_structure(item, mask.voxels), mask.spacing))
        except DagmanError:
            # It is refused by name when its turn comes.
            continue
    return CropSpec(spacing=choose_crop(extents, coarsest=reader.spacing).spacing) if extents else FROM_SIZE


def list_seen(encoder: Encoder, names: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """Names of the scans that pretraining saw, by content, whatever their files are called; each once."""
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
    keys = [name_input(encoder, one, pooling) for one in given] if cache else []
    vectors: list[NDArray[np.float32] | None] = [cache.get(key) for key in keys] if cache else [None] * len(given)
    missing = [place for place, vector in enumerate(vectors) if vector is None]
    crops = [(place, one) for place in missing if isinstance(one := given[place], Crop)]
    for (place, _), vector in zip(crops, pool_crops(encoder, [crop for _, crop in crops], pooling), strict=True):
        vectors[place] = vector
    for place in missing:
        if isinstance(one := given[place], PreparedScan):
            vectors[place] = pool_scan(encoder, one, pooling)
    found = [vector for vector in vectors if vector is not None]
    if cache:
        for place in missing:
            cache.put(keys[place], found[place])
    return found
