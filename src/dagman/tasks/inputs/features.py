"""Extract features of a table's items for any model, from the same crops; they do not depend on folds, repeats or tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from dagman.encoder.cluster.dask_features import refuse_lost, spread_scans
from dagman.encoder.encoder import Encoder
from dagman.encoder.inputs.opening import Grid
from dagman.encoder.items import FeatureRow, FeatureTable, RefusedItem, choose_item_crop, embed_items
from dagman.encoder.reader import ANY_SCAN
from dagman.errors import DagmanError, TaskError
from dagman.records.counts import list_some
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.store.workers import Lost
from dagman.tables.items import Item
from dagman.tables.table import Table
from dagman.tasks.inputs.descriptors import DESCRIPTORS
from dagman.tasks.inputs.item_crops import stream_crops
from dagman.tasks.models import ModelSpec, load_network


def extract_features(
    model: ModelSpec | Encoder,
    table: Table | Sequence[Item],
    *,
    store: Store | None = None,
    crop: CropSpec = FROM_SIZE,
    cache: str | Path | None = None,
    dask: str | None = None,
    on_item: Callable[[int], None] | None = None,
) -> FeatureTable:
    """Extract a feature vector for each usable item, in the table's order; the others are in `refused` with their reasons.

    Args:
        model: The model.
        table: A table, or items.
        store: Store to read scans from, if they are in it.
        crop: Requested crop, as in `encoder.items`; pass that of `choose_table_crop` to give several models the same crops.
        cache: Folder that caches the vectors of networks by content.
        dask: Address of a Dask scheduler, as in `stream_features`.
        on_item: Called with the number of finished items.

    Raises:
        TableError: Most points lie outside their scans.
        TaskError: No item can be used.
    """
    items = table.items if isinstance(table, Table) else tuple(table)
    if isinstance(model, ModelSpec) and model.has_network:
        model = load_network(model)
    if isinstance(model, Encoder):
        features = embed_items(model, items, store=store, crop=crop, cache=cache, dask=dask, on_item=on_item)
    else:
        features = _describe_items(model, items, store, crop, dask, on_item or (lambda done: None))
    if not len(features):
        raise TaskError(f"no item can be used: {features.refused[0].reason}" if features.refused else "there are no items")
    return features


def choose_table_crop(table: Table | Sequence[Item], asked: CropSpec = FROM_SIZE) -> CropSpec:
    """Choose the crop for all models in a comparison; see `choose_item_crop`."""
    items = table.items if isinstance(table, Table) else tuple(table)
    return choose_item_crop(items, ANY_SCAN, asked)


def describe_refused(refused: Sequence[RefusedItem]) -> list[str]:
    """Describe why items were skipped: one sentence per reason, with the items' names."""
    notes: dict[str, list[str]] = {}
    for refusal in refused:
        notes.setdefault(refusal.reason, []).append(refusal.item.name)
    return [f"skipped {list_some(names)}: {reason}" for reason, names in notes.items()]


def _describe_items(
    spec: ModelSpec,
    items: Sequence[Item],
    store: Store | None,
    crop: CropSpec,
    dask: str | None,
    on_item: Callable[[int], None],
) -> FeatureTable:
    following: Iterable[FeatureRow | RefusedItem]
    if dask is None:
        following = _describe_group(spec.kind, store, crop, None, items)
    else:
        work = partial(_describe_scan, spec.kind, store, choose_item_crop(items, ANY_SCAN, crop))
        spread = spread_scans(work, items, dask)
        following = (row for of, rows in spread for row in (refuse_lost(of, rows) if isinstance(rows, Lost) else rows))
    described: list[FeatureRow | RefusedItem] = []
    for row in following:
        described.append(row)
        on_item(len(described))
    return FeatureTable.gather(described, DESCRIPTORS[spec.kind][1])


def _describe_scan(
    kind: str, store: Store | None, crop: CropSpec, items: Sequence[Item]
) -> tuple[list[FeatureRow | RefusedItem], list[Grid]]:
    grids: list[Grid] = []
    return list(_describe_group(kind, store, crop, grids, items)), grids


def _describe_group(
    kind: str, store: Store | None, crop: CropSpec, grids: list[Grid] | None, items: Sequence[Item]
) -> Iterator[FeatureRow | RefusedItem]:
    for given in stream_crops(ANY_SCAN, items, store=store, crop=crop, grids=grids):
        if isinstance(given, RefusedItem):
            yield given
            continue
        opened, taken = given
        try:
            values = DESCRIPTORS[kind][0](opened, taken)
            yield FeatureRow(item=opened.item, values=values, content_hash=opened.content_hash, cut=opened.cut)
        except DagmanError as error:
            yield RefusedItem(item=opened.item, reason=str(error))
