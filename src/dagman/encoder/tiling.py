"""The one sliding window of the project: a whole scan through a network that sees a part of it at a time.

`plan_tiles` says where tiles lie, `sliding_window_inference` blends what the network makes of them by a Gaussian about each tile's
middle, as nnU-Net and MONAI do: a place near a tile's border saw half of its surroundings. For features `plan_pass` takes the whole
scan as one tile as far as memory allows (docs/decisions/0014-whole-scans-in-one-pass.md), and beyond it tiles that start where the
network's attention windows do. The scan lies in the middle of its padding, as small scans do in training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from dagman.model import SwinEncoder
from dagman.model.backbone import Backbone

Triple = tuple[int, int, int]
Forward = Callable[[Float[Tensor, "B 1 S S S"]], Sequence[Float[Tensor, "B C s s s"]]]

ALIGNMENT = 32
"""Voxels along a token of x4: tiles of features start at multiples of it."""
OVERLAP = 0.25
"""Least share of a tile's side that the next one covers too, where features or attention are blended."""
SPREAD = 1 / 8
"""Standard deviation of the Gaussian in sides of a tile (nnU-Net's, MONAI's)."""
FLOOR, FLOOR_HALF = 1e-3, 0.05
"""Least weight of the Gaussian along each axis: a place that only a corner saw keeps its value to rounding; in float16, whose least
normal number is 6e-5, the cube of the second does."""
PLANES_AT_ONCE = 16
"""Of a scan that is given in slabs."""
MOST_MEMORY = 2**31
"""Bytes that a pass may take beyond the weights; a larger scan is cut into tiles."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Where tiles lie: boxes of `size` voxels at `starts` in a scan of `shape` voxels, padded to `padded`, `offset` before it.

    floor: the least that a tile's Gaussian weight is along each axis.
    """

    shape: Triple
    padded: Triple
    offset: Triple
    size: Triple
    starts: tuple[Triple, ...]
    floor: float = FLOOR

    @property
    def scan_box(self) -> tuple[slice, slice, slice]:
        """Where the scan lies in its padding."""
        x, y, z = (slice(before, before + size) for before, size in zip(self.offset, self.shape, strict=True))
        return x, y, z


def plan_tiles(
    shape: Sequence[int], side: int, *, overlap: float = OVERLAP, alignment: int = ALIGNMENT, floor: float = FLOOR
) -> Tiling:
    """Cubes of `side` voxels that cover a scan of `shape` voxels, evenly spread, overlapping by at least `overlap` of their side.

    Sides of the padded scan are multiples of `alignment`, and so are starts. Raises ValueError for a side that is not.
    """
    if side % alignment:
        raise ValueError(f"a tile of {side} voxels is not a multiple of {alignment}")
    padded = [max(side, -(-size // alignment) * alignment) for size in shape]
    axes = [_spread(whole, side, int(side * (1 - overlap)), alignment) for whole in padded]
    return replace(_place(shape, padded, [side] * 3, axes), floor=floor)


def plan_pass(shape: Sequence[int], view: int, backbone: Backbone, *, memory: int = MOST_MEMORY) -> Tiling:
    """How a scan of `shape` voxels is read for features: in one pass if `memory` (bytes) allows, else in tiles as large as it does.

    No axis is shorter than a `view`, the smallest that the network was trained on. Tiles start at multiples of the backbone's
    `alignment`, so that its attention windows are those of one pass; the longest axes are cut first. A backbone with positions is
    given tiles of the side that they were learned for.
    """
    if backbone.view:
        return plan_tiles(shape, backbone.view)
    most = memory // estimate_bytes(backbone)
    padded = [max(view, -(-size // ALIGNMENT) * ALIGNMENT) for size in shape]
    size, axes = padded, [[0], [0], [0]]
    if int(np.prod(padded)) > most:
        unit = backbone.alignment
        padded = [max(view, -(-size // unit) * unit) for size in shape]
        size = list(padded)
        while int(np.prod(size)) > most and max(size) > max(view, 2 * unit):
            size[int(np.argmax(size))] -= unit
        axes = [_spread(whole, side, int(side * (1 - OVERLAP)), unit) for whole, side in zip(padded, size, strict=True)]
    return _place(shape, padded, size, axes)


def estimate_bytes(backbone: Backbone) -> int:
    """Most bytes a voxel that a pass without gradients takes: measured, 126 to 140 of `tiny`, 197 of `paper`, 490 to 512 of CT-FM.

    Others: 12 a channel, 16 where all channels are at full resolution. A Swin takes a quarter of it since it works in place; its
    tiles, and so a long scan's features, stay as they were.
    """
    embed = backbone.widths[0] // 2
    if isinstance(backbone, SwinEncoder):
        return 80 + 5 * embed // 2
    return (12 if backbone.strides[0] > 2 else 16) * embed


def sliding_window_inference(
    forward: Forward,
    voxels: NDArray[np.int16],
    tiling: Tiling,
    *,
    fill: float,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> list[Float[Tensor, "C x y z"]]:
    """The network's maps of a whole scan (X Y Z), blended, on the grid of the padded scan; on the CPU, wherever `forward` works.

    forward: tiles (the scan's own values) to maps whose sides divide the tile's. fill: what the padding holds. batch: tiles
    at once. dtype: of the sums; float16 halves the memory, and costs about 1e-3 of a probability.
    Memory: the maps themselves and one batch of tiles, however large the scan.
    """
    sums: list[Tensor] = []
    totals: list[Tensor] = []
    for first in range(0, len(tiling.starts), batch):
        starts = tiling.starts[first : first + batch]
        tiles = np.stack([_cut_tile(voxels, tiling, start, fill) for start in starts])
        maps = [features.float().cpu() for features in forward(torch.from_numpy(tiles)[:, None])]
        if len(tiling.starts) == 1:
            return [features[0].to(dtype) for features in maps]
        if not sums:
            grids = [_scale(tiling.padded, features, tiling) for features in maps]
            sums = [torch.zeros(features.shape[1], *grid, dtype=dtype) for features, grid in zip(maps, grids, strict=True)]
            totals = [torch.zeros(grid) for grid in grids]
        for features, total, blended in zip(maps, totals, sums, strict=True):
            weights = weight_tile(features.shape[2:], tiling.floor)
            for tile, start in zip(features, starts, strict=True):
                place = tuple(slice(at, at + n) for at, n in zip(_scale(start, features, tiling), tile.shape[1:], strict=True))
                blended[(slice(None), *place)] += (tile * weights).to(dtype)
                total[place] += weights
    for blended, total in zip(sums, totals, strict=True):
        for channel in range(len(blended)):
            blended[channel] = blended[channel].float() / total
    return sums


def stream_tiles(
    forward: Forward, voxels: NDArray[np.int16], tiling: Tiling, *, fill: float
) -> Iterator[tuple[Triple, list[Float[Tensor, "C x y z"]]]]:
    """Each tile's start and its maps times their share of the blend: added up, they are what `sliding_window_inference` gives.

    One tile is in memory at a time, for those who add up elsewhere, such as in a file; `forward` and `fill` as there.
    """
    places = [sorted({start[axis] for start in tiling.starts}) for axis in range(3)]
    for start in tiling.starts:
        tile = torch.from_numpy(_cut_tile(voxels, tiling, start, fill))[None, None]
        maps = [features[0].float().cpu() for features in forward(tile)]
        if len(tiling.starts) > 1:
            maps = [features * _share_tile(features.shape[1:], start, places, tiling) for features in maps]
        yield start, maps


def stream_planes(
    forward: Forward,
    voxels: NDArray[np.int16],
    tiling: Tiling,
    axis: int,
    *,
    fill: float,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, Float[Tensor, "C _ _ _"]]]:
    """`sliding_window_inference` of a network with one map as fine as its tiles, in slabs across `axis` and without the padding.

    Each slab comes with its first plane, in their order, once no tile reaches it any more; it is overwritten by the next.
    Memory: as many planes as a tile has, and one batch of tiles, however long the scan. Sums are taken in another order than there.
    """
    size, box = tiling.size[axis], tiling.scan_box
    starts = sorted(tiling.starts, key=lambda start: (start[axis], start))
    sums, total, low = torch.empty(0), torch.empty(0), 0
    weights = weight_tile(tiling.size, tiling.floor)

    def give(done: int) -> Iterator[tuple[int, Tensor]]:
        for first in range(low, low + done, PLANES_AT_ONCE):
            planes = slice(max(first, box[axis].start), min(first + PLANES_AT_ONCE, low + done, box[axis].stop))
            if planes.start >= planes.stop:
                continue
            place = [planes if number == axis else part for number, part in enumerate(box)]
            place[axis] = slice(planes.start - low, planes.stop - low)
            slab, own = sums[(slice(None), *place)], total[tuple(place)]
            for channel in slab:
                channel.copy_(channel.float() / own)
            yield planes.start - box[axis].start, slab

    for number in range(0, len(starts), batch):
        some = starts[number : number + batch]
        (maps,) = forward(torch.from_numpy(np.stack([_cut_tile(voxels, tiling, start, fill) for start in some]))[:, None])
        if not number:
            shape = [size if axis == other else side for other, side in enumerate(tiling.padded)]
            sums, total = torch.zeros(maps.shape[1], *shape, dtype=dtype), torch.zeros(shape)
        for tile, start in zip(maps.float().cpu(), some, strict=True):
            if done := start[axis] - low:
                yield from give(done)
                for held in (total, *sums):
                    held.narrow(axis, 0, size - done).copy_(held.narrow(axis, done, size - done).clone())
                    held.narrow(axis, size - done, done).zero_()
                low = start[axis]
            place = [slice(at, at + side) for at, side in zip(start, tiling.size, strict=True)]
            place[axis] = slice(0, size)
            for held, channel in zip(sums, tile, strict=True):
                held[tuple(place)] += (channel if len(starts) == 1 else channel * weights).to(dtype)
            total[tuple(place)] += 1 if len(starts) == 1 else weights
        del maps, tile
    yield from give(size)


def _share_tile(cells: Sequence[int], start: Triple, places: Sequence[Sequence[int]], tiling: Tiling) -> Float[Tensor, "x y z"]:
    """The share of a tile's weights in those of all tiles. Tiles are a grid, so that it is a product over the axes."""
    axes = []
    for count, first, others, size in zip(cells, start, places, tiling.size, strict=True):
        weights = _weight_axis(count, tiling.floor)
        total = torch.zeros(count)
        for other in others:
            offset = (other - first) * count // size
            if abs(offset) < count:
                total[max(0, offset) : count + min(0, offset)] += weights[max(0, -offset) : count - max(0, offset)]
        axes.append(weights / total)
    return axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]


def mirror_forward(forward: Forward, axes: Sequence[int] = (0, 1, 2)) -> Forward:
    """The mean of a network's answers over all mirrored forms of a tile, mirrored back (test-time mirroring)."""
    subsets = [flips for count in range(len(axes) + 1) for flips in itertools.combinations([axis + 2 for axis in axes], count)]

    def average(tiles: Tensor) -> list[Tensor]:
        sums: list[Tensor] = []
        for flips in subsets:
            answers = [torch.flip(one, flips) for one in forward(torch.flip(tiles, flips))]
            sums = [total.add_(one) for total, one in zip(sums, answers, strict=True)] if sums else answers
        return [total / len(subsets) for total in sums]

    return average


def mark_scan(tiling: Tiling) -> Bool[Tensor, "X Y Z"]:
    """True where the padded scan is scan, False where it is padding."""
    inside = torch.zeros(tiling.padded, dtype=torch.bool)
    inside[tiling.scan_box] = True
    return inside


def weight_tile(cells: Sequence[int], floor: float = FLOOR) -> Float[Tensor, "x y z"]:
    """What each cell of a tile's map counts: a Gaussian about the middle, 1 there, of at least `floor` along each axis."""
    x, y, z = (_weight_axis(count, floor) for count in cells)
    return x[:, None, None] * y[None, :, None] * z[None, None, :]


def _weight_axis(count: int, floor: float) -> Float[Tensor, "n"]:
    places = (torch.arange(count) + 0.5) / count - 0.5
    return torch.exp(-0.5 * (places / SPREAD) ** 2).clamp(min=floor)


def _spread(whole: int, size: int, step: int, alignment: int) -> list[int]:
    """First voxels along an axis: from 0 to the last that fits, at most `step` apart, all multiples of `alignment`."""
    units, stride = (whole - size) / alignment, max(1, step // alignment)
    count = int(np.ceil(units / stride))
    return [round(number * units / max(count, 1)) * alignment for number in range(count + 1)]


def _place(shape: Sequence[int], padded: Sequence[int], size: Sequence[int], axes: Sequence[list[int]]) -> Tiling:
    return Tiling(
        shape=_triple(shape),
        padded=_triple(padded),
        offset=_triple([(whole - inside) // 2 for whole, inside in zip(padded, shape, strict=True)]),
        size=_triple(size),
        starts=tuple(_triple(start) for start in itertools.product(*axes)),
    )


def _scale(voxels: Sequence[int], features: Tensor, tiling: Tiling) -> list[int]:
    """Places in voxels as places on the grid of a tile's map."""
    return [place * cells // size for place, cells, size in zip(voxels, features.shape[2:], tiling.size, strict=True)]


def _cut_tile(voxels: NDArray[np.int16], tiling: Tiling, start: Triple, fill: float) -> NDArray[np.float32]:
    tile = np.full(tiling.size, fill, dtype=np.float32)
    source, target = [], []
    for first, extent, before, size in zip(start, tiling.size, tiling.offset, tiling.shape, strict=True):
        low, high = max(first, before), min(first + extent, before + size)
        source.append(slice(low - before, max(low, high) - before))
        target.append(slice(low - first, max(low, high) - first))
    tile[tuple(target)] = voxels[tuple(source)]
    return tile


def _triple(values: Sequence[int]) -> Triple:
    x, y, z = (int(value) for value in values)
    return x, y, z
