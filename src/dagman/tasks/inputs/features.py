"""Features of a table for any model, from the same crops; computed once, whatever the folds, repeats and tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dagman.encoder.encoder import Encoder
from dagman.encoder.items import FeatureTable, RefusedItem, choose_item_crop, embed_items
from dagman.encoder.reader import ANY_SCAN
from dagman.errors import DagmanError, TaskError
from dagman.records.counts import list_some
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
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
    on_item: Callable[[int], None] | None = None,
) -> FeatureTable:
    """A vector for each item that can be used, in the table's order; the others are in `refused`, each with its reason.

    crop: as `encoder.items`; give `choose_table_crop`'s to several models, and they see the same crops.
    cache: folder of vectors that networks keep and find by content. on_item: called with how many items are done.
    Raises TableError when most points lie outside their scans, TaskError when nothing is left.
    """
    items = table.items if isinstance(table, Table) else tuple(table)
    if isinstance(model, ModelSpec) and model.has_network:
        model = load_network(model)
    if isinstance(model, Encoder):
        features = embed_items(model, items, store=store, crop=crop, cache=cache, on_item=on_item)
    else:
        features = _describe_items(model, items, store, crop, on_item or (lambda done: None))
    if not len(features):
        raise TaskError(f"no item can be used: {features.refused[0].reason}" if features.refused else "there are no items")
    return features


def choose_table_crop(table: Table | Sequence[Item], asked: CropSpec = FROM_SIZE) -> CropSpec:
    """What the crops of all models have in common; see `choose_item_crop`."""
    items = table.items if isinstance(table, Table) else tuple(table)
    return choose_item_crop(items, ANY_SCAN, asked)


def describe_refused(refused: Sequence[RefusedItem]) -> list[str]:
    """A sentence for each reason why items were left out, with the items' names."""
    notes: dict[str, list[str]] = {}
    for one in refused:
        notes.setdefault(one.reason, []).append(one.item.name)
    return [f"left out {list_some(names)}: {reason}" for reason, names in notes.items()]


def _describe_items(
    spec: ModelSpec, items: Sequence[Item], store: Store | None, crop: CropSpec, on_item: Callable[[int], None]
) -> FeatureTable:
    describe, columns = DESCRIPTORS[spec.kind]
    found: list[tuple[Item, np.ndarray, str]] = []
    cut: dict[str, float] = {}
    refused: list[RefusedItem] = []
    for done, given in enumerate(stream_crops(ANY_SCAN, items, store=store, crop=crop), 1):
        on_item(done)
        if isinstance(given, RefusedItem):
            refused.append(given)
            continue
        opened, taken = given
        try:
            found.append((opened.item, describe(opened, taken), opened.content_hash))
            cut |= {opened.item.name: opened.cut} if opened.cut else {}
        except DagmanError as error:
            refused.append(RefusedItem(item=opened.item, reason=str(error)))
    found.sort(key=lambda one: one[0].index)
    return FeatureTable(
        items=tuple(item for item, _, _ in found),
        values=np.stack([vector for _, vector, _ in found]) if found else np.empty((0, len(columns)), dtype=np.float32),
        columns=columns,
        hashes=tuple(content for _, _, content in found),
        refused=tuple(sorted(refused, key=lambda one: one.item.index)),
        cut=cut,
    )
