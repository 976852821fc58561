"""A whole scan through a network that sees one view at a time: overlapping tiles, blended with weights that favour their middle.

A token at a tile's border saw half of its surroundings; tiles overlap, and a Gaussian takes each place from the tile that saw
most around it (as nnU-Net does for predictions). Tiles start at multiples of the coarsest stage's stride, so that the grids of
neighbouring tiles fall on one grid at every stage. The scan lies in the middle of its padding, as small scans do in training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

Triple = tuple[int, int, int]
Forward = Callable[[Float[Tensor, "B 1 S S S"]], Sequence[Float[Tensor, "B C s s s"]]]

ALIGNMENT = 32
"""Voxels along a token of x4."""
OVERLAP = 0.25
"""Least share of a tile's side that the next one covers too; tiles of 128 overlap by 32 voxels, tiles of 64 and 96 by 32."""
LARGEST = 128
"""Voxels along a side of the largest tile that features are read from, unless a view is larger."""
SPREAD = 1 / 8
"""Standard deviation of the Gaussian, in sides of a tile (nnU-Net's)."""
LEAST_WEIGHT = 1e-3
"""Floor of the Gaussian along each axis, so that a place which only a corner saw keeps its value to rounding."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Where tiles lie: cubes of `side` voxels at `starts` in a scan of `shape` voxels, padded to `padded`, `offset` before it."""

    shape: Triple
    padded: Triple
    offset: Triple
    side: int
    starts: tuple[Triple, ...]

    @property
    def scan_box(self) -> tuple[slice, slice, slice]:
        """Where the scan lies in its padding."""
        x, y, z = (slice(before, before + size) for before, size in zip(self.offset, self.shape, strict=True))
        return x, y, z


def plan_tiles(shape: Sequence[int], side: int) -> Tiling:
    """Tiles that cover a scan of `shape` voxels; one if it is no larger than a tile. `side` is a multiple of 32."""
    if side % ALIGNMENT:
        raise ValueError(f"a tile of {side} voxels is no multiple of {ALIGNMENT}")
    step = max(ALIGNMENT, int(side * (1 - OVERLAP)) // ALIGNMENT * ALIGNMENT)
    padded = [max(side, -(-size // ALIGNMENT) * ALIGNMENT) for size in shape]
    # The last tile ends where the padding ends: it is moved back, so that no more padding is needed.
    axes = [[*range(0, size - side, step), size - side] for size in padded]
    return Tiling(
        shape=_triple(shape),
        padded=_triple(padded),
        offset=_triple([(whole - size) // 2 for whole, size in zip(padded, shape, strict=True)]),
        side=side,
        starts=tuple(itertools.product(*axes)),
    )


def choose_side(shape: Sequence[int], view: int) -> int:
    """The side of tiles, from that of a view to 128 voxels, that puts the fewest voxels of a scan of `shape` through a network.

    Neighbours share 32 voxels at least: in a large scan tiles of 64 read each voxel eight times, tiles of 128 2.4 times.
    """
    sides = range(view, max(view, LARGEST) + 1, ALIGNMENT)
    return min(sides, key=lambda side: len(plan_tiles(shape, side).starts) * side**3)


def map_tiles(
    forward: Forward, voxels: NDArray[np.int16], tiling: Tiling, *, fill: float, batch: int = 1
) -> list[Float[Tensor, "C x y z"]]:
    """The network's maps of a whole scan (X Y Z), blended, on the grid of the padded scan; on the CPU, wherever `forward` works.

    forward: tiles to maps whose sides divide the tile's. fill: what the padding holds. batch: tiles at once.
    Memory: the maps themselves and one batch of tiles, however large the scan.
    """
    sums: list[Tensor] = []
    totals: list[Tensor] = []
    for first in range(0, len(tiling.starts), batch):
        starts = tiling.starts[first : first + batch]
        tiles = np.stack([_cut_tile(voxels, tiling, start, fill) for start in starts])
        maps = [features.float().cpu() for features in forward(torch.from_numpy(tiles)[:, None])]
        if not sums:
            grids = [[size * features.shape[2] // tiling.side for size in tiling.padded] for features in maps]
            sums = [torch.zeros(features.shape[1], *grid) for features, grid in zip(maps, grids, strict=True)]
            totals = [torch.zeros(grid) for grid in grids]
        for features, total, blended in zip(maps, totals, sums, strict=True):
            cells = features.shape[2]
            weights = _weigh_cells(cells)
            for tile, start in zip(features, starts, strict=True):
                place = tuple(slice(voxel * cells // tiling.side, voxel * cells // tiling.side + cells) for voxel in start)
                blended[(slice(None), *place)] += tile * weights
                total[place] += weights
    for blended, total in zip(sums, totals, strict=True):
        blended /= total
    return sums


def mark_scan(tiling: Tiling) -> Bool[Tensor, "X Y Z"]:
    """True where the padded scan is scan, False where it is padding."""
    inside = torch.zeros(tiling.padded, dtype=torch.bool)
    inside[tiling.scan_box] = True
    return inside


def _cut_tile(voxels: NDArray[np.int16], tiling: Tiling, start: Triple, fill: float) -> NDArray[np.float32]:
    tile = np.full((tiling.side,) * 3, fill, dtype=np.float32)
    source, target = [], []
    for first, before, size in zip(start, tiling.offset, tiling.shape, strict=True):
        low, high = max(first, before), min(first + tiling.side, before + size)
        source.append(slice(low - before, max(low, high) - before))
        target.append(slice(low - first, max(low, high) - first))
    tile[tuple(target)] = voxels[tuple(source)]
    return tile


def _weigh_cells(cells: int) -> Float[Tensor, "s s s"]:
    places = (torch.arange(cells) + 0.5) / cells - 0.5
    axis = torch.exp(-0.5 * (places / SPREAD) ** 2).clamp(min=LEAST_WEIGHT)
    return axis[:, None, None] * axis[None, :, None] * axis[None, None, :]


def _triple(values: Sequence[int]) -> Triple:
    x, y, z = (int(value) for value in values)
    return x, y, z
