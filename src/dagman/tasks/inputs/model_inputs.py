"""Gather the inputs of several models for a table: features and crops of exactly the same items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.embedding import list_stage_ends
from dagman.encoder.encoder import Encoder
from dagman.encoder.items import FeatureTable, RefusedItem
from dagman.errors import TaskError
from dagman.evaluation.splits import name_overlap
from dagman.notes import Note, inform, warn
from dagman.records.counts import count_noun
from dagman.records.hashes import hash_array
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.tables.items import note_cut
from dagman.tables.table import Table
from dagman.tasks.inputs.features import choose_table_crop, describe_refused, extract_features
from dagman.tasks.inputs.item_crops import ItemCrop, cut_items
from dagman.tasks.models import ModelSpec, load_network, name_models


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInput:
    """A model with its features of the items, n x C; None if only crops are needed."""

    name: str
    spec: ModelSpec
    encoder: Encoder | None = field(repr=False)
    features: NDArray[np.float32] | None = field(repr=False)

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Numbers of leading features that a probe may be restricted to, by stage; empty if there are no stages."""
        return list_stage_ends(self.encoder) if self.encoder else ()

    @property
    def digest(self) -> str:
        """Hash of everything that the model's scores depend on."""
        weights = self.encoder.digest if self.encoder else self.spec.text
        return weights + (hash_array(self.features) if self.features is not None else "")


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskInputs:
    """All models, the items that all of them can use, and the crops if a network is to be trained."""

    models: tuple[ModelInput, ...]
    table: Table
    hashes: tuple[str, ...] = field(repr=False)
    "Content hash of each item's scan."
    crops: tuple[ItemCrop, ...] = field(repr=False)
    crop: CropSpec
    "Size and spacing of all crops; those that are None are chosen for each item."
    notes: tuple[Note, ...] = ()


def gather_inputs(
    specs: Sequence[ModelSpec],
    table: Table,
    *,
    embed: bool = True,
    cut: bool = False,
    store: Store | None = None,
    crop: CropSpec = FROM_SIZE,
    cache: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    notify: Callable[[str], None] | None = None,
) -> TaskInputs:
    """Extract features of the table for each model (`embed`) and cut crops (`cut`); items that any model rejects are skipped.

    Raises:
        TaskError: No item can be used, or features are not finite or all identical.
    """
    notify = notify or (lambda text: None)
    names = name_models(specs)
    crop = choose_table_crop(table, crop)
    found: list[tuple[str, ModelSpec, Encoder | None, FeatureTable | None]] = []
    refused: list[RefusedItem] = []
    hashes: dict[str, str] = {}
    cut_off: dict[str, float] = {}
    for name, spec in zip(names, specs, strict=True):
        encoder = load_network(spec, device=device, precision=precision) if spec.has_network else None
        features = None
        if embed:
            count = count_parts(notify, f"{name}: features of item", len(table))
            features = extract_features(encoder or spec, table, store=store, crop=crop, cache=cache, on_item=count)
            refused += features.refused
            cut_off |= features.cut
            hashes |= dict(zip(features.names, features.hashes, strict=True))
        found.append((name, spec, encoder, features))
    crops = None
    trained = next((encoder for _, _, encoder, _ in found if encoder is not None), None)
    if cut and trained is not None:
        notify(f"crops of {count_noun(len(table), 'item')}")
        crops = cut_items(trained.reader, table.items, store=store, crop=crop)
        refused += crops.refused
        cut_off |= crops.cut
        hashes |= dict(zip([item.name for item in crops.items], crops.hashes, strict=True))
    kept = _keep_items(table, refused)
    usable = {item.name for item in kept.items}
    models = tuple(
        ModelInput(
            name=name,
            spec=spec,
            encoder=encoder,
            features=None if features is None else features.values[[item.name in usable for item in features.items]],
        )
        for name, spec, encoder, features in found
    )
    notes = [note for model in models for note in _check_features(model)]
    notes += [inform(f"{model.name}: {line}") for model in models if model.encoder and (line := model.encoder.describe_positions())]
    once = {one.item.name: one for one in refused}
    return TaskInputs(
        models=models,
        table=kept,
        hashes=tuple(hashes[item.name] for item in kept.items),
        crops=() if crops is None else tuple(c for item, c in zip(crops.items, crops.crops, strict=True) if item.name in usable),
        crop=crop,
        notes=(*table.notes, *map(warn, [*describe_refused(list(once.values())), *note_cut(cut_off)]), *notes),
    )


def count_parts(notify: Callable[[str], None], text: str, total: int) -> Callable[[int], None]:
    """Return a callback for the number of finished parts; it notifies of the next part, such as "crop 3 of 20"."""
    notify(f"{text} 1 of {total}")
    return lambda done: notify(f"{text} {done + 1} of {total}") if done < total else None


def warn_of_overlap(inputs: TaskInputs, tested: NDArray[np.int64]) -> list[Note]:
    """Warn about each model that was pretrained on scans of the tested items, naming these scans."""
    scans = [Path(str(inputs.table.items[i].scan)).name for i in tested]
    hashes = [inputs.hashes[i] for i in tested]
    warnings = []
    for model in inputs.models:
        seen = model.encoder.config.scans_seen if model.encoder else ()
        warning = name_overlap(scans, hashes, seen)
        if warning:
            warnings.append(warn(f"{model.name}: {warning}"))
    return warnings


def _check_features(model: ModelInput) -> list[Note]:
    """Note items with identical features; raises TaskError if features are not finite, or identical for all items."""
    values = model.features
    if values is None:
        return []
    if not np.isfinite(values).all():
        broken = int(np.sum(~np.isfinite(values).all(axis=1)))
        what = f"{model.name}: features of {count_noun(broken, 'item')} are not finite"
        raise TaskError(what, do="Its weights are probably damaged; pretrain again, or give another checkpoint")
    distinct = len(np.unique(values, axis=0))
    # For identical crops, a network's outputs may differ by rounding.
    if len(values) > 1 and float(np.ptp(values, axis=0).max()) <= 1e-5 * float(np.abs(values).max()):
        what = f"{model.name}: the features of all {len(values)} items are identical, so they cannot be distinguished"
        raise TaskError(what, do="Its pretraining has probably collapsed (see dagman report), or all items are the same scan")
    if distinct < len(values):
        text = f"{model.name}: {len(values)} items have {distinct} distinct feature vectors; the others are copies"
        return [inform(text)]
    return []


def _keep_items(table: Table, refused: Sequence[RefusedItem]) -> Table:
    left_out = {one.item.name for one in refused}
    items = tuple(item for item in table.items if item.name not in left_out)
    if not items:
        raise TaskError(f"no item can be used: {refused[0].reason}", where=table.path)
    lost = set(table.classes) - {str(item.label) for item in items}
    if table.classes and lost:
        what = f"no item of class '{sorted(lost)[0]}' can be used: {refused[0].reason}"
        raise TaskError(what, where=table.path)
    return replace(table, items=items)
