"""Crops of a table's items, cut once and kept: what every model of a task is given.

The shape of a crop is that of `encoder.items` (one spacing a table, a side that suits each structure); a whole scan becomes
one crop that holds all of it, so that it too can be fine-tuned on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.inputs.opening import Grid
from dagman.encoder.items import OpenItem, RefusedItem, choose_item_crop, open_items
from dagman.encoder.reader import ScanReader
from dagman.errors import DagmanError
from dagman.scans.scan import Modality, Scan
from dagman.store.crops import (
    FROM_SIZE,
    LARGEST_SIDE,
    Crop,
    CropShape,
    CropSpec,
    Reach,
    choose_crop,
    cut_mask_crop,
    cut_structure,
    cut_surroundings,
    measure_extent,
)
from dagman.store.manifest import Store
from dagman.tables.items import Item


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemCrop:
    """A crop as it is kept: `voxels` int16 X Y Z (HU, MR as stored), where to pool (True), and the voxel size in mm.

    within: what of it is scan and not mirrored, as in `Crop`.
    """

    voxels: NDArray[np.int16] = field(repr=False)
    inside: NDArray[np.bool_] = field(repr=False)
    modality: Modality
    spacing: float
    within: Reach | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemCrops:
    """Crops of items in the table's order, the content hashes of their scans, and who was refused."""

    items: tuple[Item, ...]
    crops: tuple[ItemCrop, ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)
    refused: tuple[RefusedItem, ...] = ()
    cut: dict[str, float] = field(default_factory=dict)
    "By name: the share of an item's mask that lies outside its scan, where there is one."

    def __len__(self) -> int:
        return len(self.items)


def cut_items(
    reader: ScanReader,
    items: Iterable[Item],
    *,
    store: Store | None = None,
    crop: CropSpec = FROM_SIZE,
    grids: list[Grid] | None = None,
) -> ItemCrops:
    """The crop of each item, int16; about 0.8 MB for 64^3 voxels.

    grids: as in `open_items`. Raises TableError when most points lie outside their scans, SettingsError for a crop that cannot be.
    """
    found: list[tuple[Item, ItemCrop, str]] = []
    refused: list[RefusedItem] = []
    cut: dict[str, float] = {}
    for given in stream_crops(reader, items, store=store, crop=crop, grids=grids):
        if isinstance(given, RefusedItem):
            refused.append(given)
        else:
            opened, taken = given
            found.append((opened.item, taken, opened.content_hash))
            cut |= {opened.item.name: opened.cut} if opened.cut else {}
    found.sort(key=lambda one: one[0].index)
    return ItemCrops(
        items=tuple(item for item, _, _ in found),
        crops=tuple(crop for _, crop, _ in found),
        hashes=tuple(content for _, _, content in found),
        refused=tuple(sorted(refused, key=lambda one: one.item.index)),
        cut=cut,
    )


def stream_crops(
    reader: ScanReader,
    items: Iterable[Item],
    *,
    store: Store | None = None,
    crop: CropSpec = FROM_SIZE,
    grids: list[Grid] | None = None,
) -> Iterator[tuple[OpenItem, ItemCrop] | RefusedItem]:
    """Each item with its crop, scan by scan; what is held does not grow with their number. grids: as in `open_items`."""
    items = list(items)
    cut = _prepare_cutter(reader, choose_item_crop(items, reader, crop))
    for opened in open_items(reader, items, store=store, grids=grids):
        if isinstance(opened, RefusedItem):
            yield opened
            continue
        try:
            taken, shape = cut(opened)
        except DagmanError as error:
            yield RefusedItem(item=opened.item, reason=str(error))
            continue
        voxels = np.rint(np.clip(taken.voxels, -32768, 32767)).astype(np.int16)
        kept = ItemCrop(voxels=voxels, inside=taken.inside, modality=taken.modality, spacing=shape.spacing, within=taken.within)
        yield opened, kept


def _prepare_cutter(reader: ScanReader, asked: CropSpec) -> Callable[[OpenItem], tuple[Crop, CropShape]]:
    def cut(opened: OpenItem) -> tuple[Crop, CropShape]:
        extent = None if opened.inside is None else measure_extent(opened.inside, opened.scan.spacing)
        if opened.inside is None and opened.item.center_mm is None:
            return _cut_whole(reader, opened.scan)
        shape = choose_crop(extent, asked, coarsest=reader.spacing)
        if opened.inside is not None:
            return cut_structure(opened.scan, opened.inside, shape), shape
        return cut_surroundings(opened.scan, opened.item.center_mm or (), shape), shape

    return cut


def _cut_whole(reader: ScanReader, scan: Scan) -> tuple[Crop, CropShape]:
    """All of a scan in one cube of at most 128 voxels a side: at the encoder's spacing if that is enough, else coarser."""
    body = reader.read(reader.prepare(scan))
    extent = max(size * step for size, step in zip(body.shape, body.spacing, strict=True))
    spacing = max(reader.spacing, extent / LARGEST_SIDE)
    # A tolerance for 64.00000000000001 voxels.
    side = int(np.ceil(extent / spacing / 32 - 1e-6)) * 32
    shape = CropShape(side, spacing)
    center = body.affine.to_world([(np.array(body.shape) - 1) / 2])[0]
    crop = cut_surroundings(body, center, shape)
    everything = Scan(
        voxels=np.ones(body.shape, dtype=np.int16), affine=body.affine, modality="other", patient=body.patient, source=body.source
    )
    inside = cut_mask_crop(everything, center, *shape) != 0
    return Crop(voxels=crop.voxels, inside=inside, modality=crop.modality, within=crop.within), shape
