"""Small pictures of items' crops in one sheet: the axial slice that shows most of the structure, with its outline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dagman.encoder.items import RefusedItem
from dagman.encoder.reader import ANY_SCAN
from dagman.randomness import address
from dagman.records.files import write_whole
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.tables.items import Item
from dagman.tasks.inputs.item_crops import ItemCrop, stream_crops

SIDE = 56
"""Pixels of a tile."""
COLUMNS = 32
MOST = 2000
"""Tiles of one sheet, about 4 MB; of more items a random part is shown."""
_WIDTH = 700.0
"""HU between black and white: a structure and what touches it, whatever it is made of."""
_OUTLINE = (240, 150, 30)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Tiles of items in rows of `COLUMNS`; `names[i]` is the i-th tile's item."""

    names: tuple[str, ...]
    pixels: NDArray[np.uint8] = field(repr=False)
    "rows, columns, 3"


def draw_tile(crop: ItemCrop) -> NDArray[np.uint8]:
    """One tile, SIDE x SIDE x 3, in radiological convention, its grey values centred on the structure's."""
    place = int(crop.inside.sum(axis=(0, 1)).argmax())
    voxels = crop.voxels[:, :, place].T[::-1, ::-1].astype(np.float32)
    low, high = _choose_window(crop, voxels)
    grey = np.clip((voxels - low) / max(high - low, 1.0) * 255, 0, 255).astype(np.uint8)
    small = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BOX))
    inside = np.ascontiguousarray(crop.inside[:, :, place].T[::-1, ::-1])
    mask = np.asarray(Image.fromarray(inside.astype(np.uint8) * 255).resize((SIDE, SIDE), Image.Resampling.BOX)) > 127
    tile = np.repeat(small[:, :, None], 3, axis=2)
    tile[_find_edge(mask)] = _OUTLINE
    return tile


def draw_sheet(
    items: Iterable[Item],
    *,
    store: Store | None = None,
    crop: CropSpec = FROM_SIZE,
    seed: int = 0,
) -> Sheet:
    """Tiles of the items that can be cropped, of `MOST` of them at most."""
    chosen = sorted(items, key=lambda item: address(seed, "thumbnails", item.name))[:MOST]
    tiles: dict[str, NDArray[np.uint8]] = {}
    for given in stream_crops(ANY_SCAN, chosen, store=store, crop=crop):
        if not isinstance(given, RefusedItem):
            opened, taken = given
            tiles[opened.item.name] = draw_tile(taken)
    names = tuple(sorted(tiles))
    rows = -(-len(names) // COLUMNS)
    pixels = np.zeros((max(rows, 1) * SIDE, COLUMNS * SIDE, 3), dtype=np.uint8)
    for place, name in enumerate(names):
        row, column = divmod(place, COLUMNS)
        pixels[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = tiles[name]
    return Sheet(names=names, pixels=pixels)


def write_sheet(path: str | Path, sheet: Sheet) -> None:
    """Write a sheet as PNG, whole."""
    with write_whole(path) as temporary:
        Image.fromarray(sheet.pixels).save(temporary, format="PNG", optimize=True)


def _choose_window(crop: ItemCrop, voxels: NDArray[np.float32]) -> tuple[float, float]:
    if crop.modality == "CT":
        middle = float(np.median(crop.voxels[crop.inside])) if crop.inside.any() else 0.0
        return middle - _WIDTH / 2, middle + _WIDTH / 2
    low, high = np.percentile(voxels, [1, 99])
    return float(low), float(high)


def _find_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is inside and has a neighbour outside."""
    padded = np.pad(mask, 1)
    within = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~within
