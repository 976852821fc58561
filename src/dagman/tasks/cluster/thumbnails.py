"""Draw thumbnails of items' crops on one sheet: the axial slice with most of the structure, and the structure's outline."""

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
"""Side of a tile in pixels."""
COLUMNS = 32
MOST = 2000
"""Maximum number of tiles on a sheet, which then has about 4 MB; if there are more items, a random subset is shown."""
_WIDTH = 700.0
"""Width of the grey scale in HU, which suits a structure of any tissue and its surroundings."""
_OUTLINE = (240, 150, 30)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Tiles of items in rows of `COLUMNS`; `names[i]` is the item of tile i."""

    names: tuple[str, ...]
    pixels: NDArray[np.uint8] = field(repr=False)
    "rows, columns, 3"


def draw_tile(crop: ItemCrop) -> NDArray[np.uint8]:
    """Draw a tile, SIDE x SIDE x 3, in radiological convention, with grey values centred on those of the structure."""
    height = int(crop.inside.sum(axis=(0, 1)).argmax())
    voxels = crop.voxels[:, :, height].T[::-1, ::-1].astype(np.float32)
    low, high = _choose_window(crop, voxels)
    grey = np.clip((voxels - low) / max(high - low, 1.0) * 255, 0, 255).astype(np.uint8)
    small = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BOX))
    inside = np.ascontiguousarray(crop.inside[:, :, height].T[::-1, ::-1])
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
    """Draw the tiles of all items that can be cropped, or of at most `MOST` random ones."""
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
    """Write a sheet as PNG."""
    with write_whole(path) as temporary:
        Image.fromarray(sheet.pixels).save(temporary, format="PNG", optimize=True)


def _choose_window(crop: ItemCrop, voxels: NDArray[np.float32]) -> tuple[float, float]:
    if crop.modality == "CT":
        middle = float(np.median(crop.voxels[crop.inside])) if crop.inside.any() else 0.0
        return middle - _WIDTH / 2, middle + _WIDTH / 2
    low, high = np.percentile(voxels, [1, 99])
    return float(low), float(high)


def _find_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find the pixels of a mask that have a neighbour outside."""
    padded = np.pad(mask, 1)
    within = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~within
