"""Cut crops of a table's items once, for all models of a task.

Crops have the shape that `encoder.items` defines: one spacing per table, and a side that suits each structure. A whole scan becomes
a single crop, so that networks can be fine-tuned on it as well.
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
    """A crop of an item.

    Attributes:
        voxels: int16 X Y Z, in HU; MR as stored.
        inside: True at voxels over which features are pooled.
        modality: Modality of the scan.
        spacing: Voxel size in mm.
        within: Part of the crop inside the scan, without mirrored padding, as in `Crop`.
    """

    voxels: NDArray[np.int16] = field(repr=False)
    inside: NDArray[np.bool_] = field(repr=False)
    modality: Modality
    spacing: float
    within: Reach | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemCrops:
    """Crops of items in the table's order, with the content hashes of their scans, and the rejected items."""

    items: tuple[Item, ...]
    crops: tuple[ItemCrop, ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)
    refused: tuple[RefusedItem, ...] = ()
    cut: dict[str, float] = field(default_factory=dict)
    "Share of an item's mask that lies outside its scan, by name, for items with such a share."

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
    """Cut the crop of each item; 64^3 voxels take about 0.8 MB.

    `grids` is that of `open_items`.

    Raises:
        TableError: Most points lie outside their scans.
        SettingsError: The requested crop is impossible.
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
    """Yield each item with its crop, scan by scan, in constant memory; `grids` is that of `open_items`."""
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
    """Cut a whole scan as a cube of at most 128 voxels per side, at the encoder's spacing or, if necessary, a coarser one."""
    body = reader.read(reader.prepare(scan))
    extent = max(size * step for size, step in zip(body.shape, body.spacing, strict=True))
    spacing = max(reader.spacing, extent / LARGEST_SIDE)
    # Tolerates rounding, such as 64.00000000000001 voxels.
    side = int(np.ceil(extent / spacing / 32 - 1e-6)) * 32
    shape = CropShape(side, spacing)
    center = body.affine.to_world([(np.array(body.shape) - 1) / 2])[0]
    crop = cut_surroundings(body, center, shape)
    everything = Scan(
        voxels=np.ones(body.shape, dtype=np.int16), affine=body.affine, modality="other", patient=body.patient, source=body.source
    )
    inside = cut_mask_crop(everything, center, *shape) != 0
    return Crop(voxels=crop.voxels, inside=inside, modality=crop.modality, within=crop.within), shape
