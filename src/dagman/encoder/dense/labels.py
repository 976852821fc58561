"""Compute a vector for each label of a label map, by pooling the tokens of the whole scan within the label.

Unlike crops around structures (`encoder.items`), which have a spacing of their own, a scan is processed once at the encoder's
spacing, regardless of the number of labels. Tokens are weighted by the fraction that lies within the label.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from dagman.encoder.dense.grids import TokenGrid, compute_grids
from dagman.encoder.encoder import Encoder
from dagman.encoder.inputs.opening import OpenedScan, RefusedItem, explain_refusal, open_scans
from dagman.encoder.items import FeatureRow
from dagman.encoder.pooling import Pooling
from dagman.encoder.tiling import MOST_MEMORY
from dagman.errors import DagmanError, TableError
from dagman.records.counts import list_some
from dagman.scans.scan import Scan
from dagman.scans.structures import holds_structures, list_structures
from dagman.store.manifest import Store
from dagman.store.preparation import prepare_mask
from dagman.tables.items import Item, align_mask, measure_cut, read_mask, refuse_fractions

SLAB = 128
"""Voxels of a label along x that are pooled at a time."""
LARGEST = 2**16 - 1
"""Largest value of a label; a map with larger values is not a label map."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelRow(FeatureRow):
    """The vector of one label, with the name of its value (None if unknown) and its total size in the map."""

    name: str | None
    voxels: int
    volume_mm3: float


def stream_labels(
    encoder: Encoder,
    items: Iterable[Item],
    *,
    store: Store | None = None,
    pooling: Pooling | None = None,
    names: Mapping[int, str] | None = None,
    memory: int = MOST_MEMORY,
    folder: Path | None = None,
) -> Iterator[LabelRow | RefusedItem]:
    """Yield a row for each label of each item's mask; for items with a `label_value`, only for that label.

    One scan, its label map, and one tile with its tokens are in memory at a time.

    Args:
        encoder: The encoder.
        items: The items.
        store: Store of the scans that items refer to by id.
        pooling: Stages and statistics.
        names: Names of label values; other labels are named by their value.
        memory, folder: As in `compute_grids`.
    """
    pooling = pooling or Pooling()
    for outcome in open_scans(encoder.reader, list(items), store):
        if isinstance(outcome, RefusedItem):
            yield outcome
            continue
        opened, group = outcome
        maps: list[tuple[Item, _LabelMap]] = []
        for item, structure in _list_maps(group):
            try:
                maps.append((item, _place_labels(encoder, opened, item, _read_labels(item), structure)))
            except DagmanError as error:
                yield RefusedItem(item=item, reason=explain_refusal(error, item))
        if not maps:
            continue
        with compute_grids(encoder, opened.prepare(encoder.reader), pooling.stages, memory=memory, folder=folder) as grids:
            for item, held in maps:
                yield from _pool_map(item, held, grids, pooling, names or {}, opened.content_hash)


def pool_label_map(
    encoder: Encoder, opened: OpenedScan, given: Scan, *, pooling: Pooling, names: Mapping[int, str]
) -> list[LabelRow | RefusedItem]:
    """Compute a row for each label of a map in memory, on the grid of its scan.

    Raises:
        DagmanError: The map cannot be used.
    """
    item = Item(index=0, name=opened.scan.source, scan=opened.scan.source, patient=opened.scan.patient)
    refuse_fractions(item, given.voxels)
    held = _place_labels(encoder, opened, item, given, None)
    with compute_grids(encoder, opened.prepare(encoder.reader), pooling.stages) as grids:
        return list(_pool_map(item, held, grids, pooling, names, opened.content_hash))


@dataclass(frozen=True, kw_only=True, eq=False)
class _LabelMap:
    """A label map on the grid of the prepared scan.

    Attributes:
        labels: Labels, X Y Z.
        voxels: Number of voxels of each label in the original map.
        voxel_mm3: Volume of a voxel of the original map in mm^3.
        cut: Fraction of the labelled voxels outside the scan.
        structure: For RTSTRUCT and SEG, number and name of the structure, whose label is 1.
    """

    labels: NDArray[np.int32]
    voxels: dict[int, int]
    voxel_mm3: float
    cut: float
    structure: tuple[int, str] | None


def _list_maps(items: Sequence[Item]) -> Iterator[tuple[Item, tuple[int, str] | None]]:
    """List the label maps of items; for RTSTRUCT and SEG, one for each requested structure, as structures may overlap."""
    for item in items:
        drawn: dict[int, str] = {}
        if item.mask is not None and holds_structures(item.mask):
            with contextlib.suppress(DagmanError):
                # Errors are reported when the file is read below.
                drawn = list_structures(item.mask)
        # A structure is given by name or number; one that the file does not contain is rejected when it is read.
        named = {number: name for number, name in drawn.items() if item.structure in (None, number, name)}
        if not named:
            yield item, None
        for number, name in named.items():
            yield replace(item, structure=number), (number, name)


def _read_labels(item: Item) -> Scan:
    if item.mask is None:
        raise TableError("has no label map", where=item.name)
    return read_mask(item)


def _place_labels(encoder: Encoder, opened: OpenedScan, item: Item, labels: Scan, structure: tuple[int, str] | None) -> _LabelMap:
    placed, cut = labels, 0.0
    if not opened.stored:
        aligned = align_mask(item, labels, opened.scan)
        cut = measure_cut(labels, aligned)
        placed = replace(labels, voxels=aligned, affine=opened.scan.affine)
    values, counts = np.unique(np.rint(labels.voxels).astype(np.int64), return_counts=True)
    voxels = {int(value): int(count) for value, count in zip(values, counts, strict=True) if value}
    if not voxels:
        raise TableError("its label map is empty", where=item.name, do="Correct the map, or remove the row")
    if item.label_value is not None and structure is None and item.label_value not in voxels:
        what = f"its label map has no voxels of label {item.label_value} (its labels: {list_some(voxels)})"
        raise TableError(what, where=item.name)
    return _LabelMap(
        labels=prepare_mask(placed, opened.prepare(encoder.reader)),
        voxels=voxels,
        voxel_mm3=abs(float(np.linalg.det(labels.affine.matrix[:3, :3]))),
        cut=cut,
        structure=structure,
    )


def _pool_map(
    item: Item, held: _LabelMap, grids: Sequence[TokenGrid], pooling: Pooling, names: Mapping[int, str], content_hash: str
) -> Iterator[LabelRow | RefusedItem]:
    boxes = scipy.ndimage.find_objects(np.where((held.labels > 0) & (held.labels <= LARGEST), held.labels, 0))
    wanted = [item.label_value] if item.label_value is not None and held.structure is None else sorted(held.voxels)
    for value in wanted:
        number, name = held.structure or (value, names.get(value))
        row = replace(item, name=f"{item.name}:{name or number}", label_value=number)
        box = boxes[value - 1] if 0 < value <= len(boxes) else None
        if not 0 < value <= LARGEST:
            yield RefusedItem(item=row, reason=f"{value} is not a label: labels are whole numbers from 1 to {LARGEST}")
        elif box is None:
            yield RefusedItem(item=row, reason="lies outside the scan, or in the air around the body")
        else:
            yield LabelRow(
                item=row,
                values=_pool_label(held.labels, value, box, grids, pooling),
                content_hash=content_hash,
                cut=held.cut,
                name=name,
                voxels=held.voxels[value],
                volume_mm3=round(held.voxels[value] * held.voxel_mm3, 3),
            )


def _pool_label(
    labels: NDArray[np.int32], value: int, box: tuple[slice, ...], grids: Sequence[TokenGrid], pooling: Pooling
) -> NDArray[np.float32]:
    """Pool the tokens of each stage that overlap the label, weighted by the fraction of each that lies within it."""
    parts: list[NDArray[np.float64]] = []
    for grid in grids:
        sums = _Sums(grid.shape[0])
        for first in range(box[0].start, box[0].stop, SLAB):
            slab = (slice(first, min(first + SLAB, box[0].stop)), box[1], box[2])
            _add_slab(sums, labels[slab] == value, slab, grid)
        parts += [sums.pool(pool) for pool in pooling.pools]
    return np.concatenate(parts).astype(np.float32)


def _add_slab(sums: _Sums, inside: NDArray[np.bool_], slab: tuple[slice, ...], grid: TokenGrid) -> None:
    places = []
    for part, before in zip(slab, grid.offset, strict=True):
        places.append((np.arange(part.start, part.stop) + before) // grid.stride)
    first = [int(place[0]) for place in places]
    counts = np.zeros([int(place[-1]) - start + 1 for place, start in zip(places, first, strict=True)], dtype=np.float64)
    x, y, z = np.nonzero(inside)
    if not len(x):
        return
    flat = np.ravel_multi_index(
        tuple(place[at] - start for place, at, start in zip(places, (x, y, z), first, strict=True)), counts.shape
    )
    counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
    region = tuple(slice(start, start + count) for start, count in zip(first, counts.shape, strict=True))
    touched = counts > 0
    # A token at the border of two slabs is added twice, each time weighted by the part of the label in that slab.
    sums.add(grid.read((region[0], region[1], region[2]))[:, touched], counts[touched])


class _Sums:
    """Running sums for mean, std and max; in float64, because the std of a channel may be a thousandth of its mean."""

    def __init__(self, channels: int) -> None:
        self.weight = 0.0
        self.first = np.zeros(channels)
        self.second = np.zeros(channels)
        self.largest = np.full(channels, -np.inf)

    def add(self, tokens: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
        """Add tokens (C x K) with their weights (K)."""
        values = tokens.astype(np.float64)
        self.weight += float(weights.sum())
        self.first += values @ weights
        self.second += np.square(values) @ weights
        self.largest = np.maximum(self.largest, values.max(axis=1))

    def pool(self, pool: str) -> NDArray[np.float64]:
        """Compute the mean, std or max of each channel."""
        mean = self.first / self.weight
        if pool == "mean":
            return mean
        return self.largest if pool == "max" else np.sqrt(np.maximum(self.second / self.weight - mean**2, 0.0))
