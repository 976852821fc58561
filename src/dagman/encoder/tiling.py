"""Sliding-window inference: apply a network to a whole scan in tiles.

`plan_tiles` positions the tiles, and `sliding_window_inference` blends the network's outputs with a Gaussian centred on each tile,
as in nnU-Net and MONAI, because voxels near the border of a tile have less context. For features, `plan_pass` uses a single tile
for the whole scan if memory allows (docs/decisions/0014-whole-scans-in-one-pass.md); otherwise tiles are aligned with the attention
windows of the network. Padding is symmetric, as for small scans in training.
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
"""Stride of x4 in voxels; tiles for features start at multiples of it."""
OVERLAP = 0.25
"""Smallest overlap of neighbouring tiles for features and attention, as a fraction of their side."""
SPREAD = 1 / 8
"""Standard deviation of the Gaussian as a fraction of a tile's side (as in nnU-Net and MONAI)."""
FLOOR, FLOOR_HALF = 1e-3, 0.05
"""Smallest weight of the Gaussian along each axis, for float32 and float16 sums. Voxels that are covered only by the corner of a
tile must keep their value up to rounding: the cube of the second exceeds 6e-5, the smallest normal number in float16."""
PLANES_AT_ONCE = 16
"""Thickness of the slabs that `stream_planes` yields."""
MOST_MEMORY = 2**31
"""Bytes that a pass may need in addition to the weights; larger scans are processed in tiles."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Positions of tiles in a padded scan; all sizes are in voxels.

    Attributes:
        shape: Size of the scan.
        padded: Size of the padded scan.
        offset: Padding before the scan along each axis.
        size: Size of a tile.
        starts: First voxel of each tile in the padded scan.
        floor: Smallest weight of the Gaussian along each axis.
    """

    shape: Triple
    padded: Triple
    offset: Triple
    size: Triple
    starts: tuple[Triple, ...]
    floor: float = FLOOR

    @property
    def scan_box(self) -> tuple[slice, slice, slice]:
        """The box of the scan within the padded scan."""
        x, y, z = (slice(before, before + size) for before, size in zip(self.offset, self.shape, strict=True))
        return x, y, z


def plan_tiles(
    shape: Sequence[int], side: int, *, overlap: float = OVERLAP, alignment: int = ALIGNMENT, floor: float = FLOOR
) -> Tiling:
    """Cover a scan of `shape` voxels with evenly spaced cubes of `side` voxels that overlap by at least `overlap` of their side.

    The sides of the padded scan and the starts of tiles are multiples of `alignment`.

    Raises:
        ValueError: `side` is not a multiple of `alignment`.
    """
    if side % alignment:
        raise ValueError(f"a tile of {side} voxels is not a multiple of {alignment}")
    padded = [max(side, -(-size // alignment) * alignment) for size in shape]
    axes = [_spread(whole, side, int(side * (1 - overlap)), alignment) for whole in padded]
    return replace(_place(shape, padded, [side] * 3, axes), floor=floor)


def plan_pass(shape: Sequence[int], view: int, backbone: Backbone, *, memory: int = MOST_MEMORY) -> Tiling:
    """Plan the computation of features of a scan: in one pass if `memory` allows, otherwise in tiles that are as large as possible.

    Tiles start at multiples of the backbone's `alignment`, so that its attention windows are the same as in one pass; the longest
    axes are divided first. Backbones with position embeddings get tiles of the side for which these were learned.

    Args:
        shape: Size of the scan in voxels.
        view: Side of the views in training in voxels; no axis is shorter.
        backbone: The backbone.
        memory: Bytes that a pass may need.
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
    """Estimate the peak memory of a pass without gradients in bytes per voxel.

    Measured: 126 to 140 for `tiny`, 197 for `paper`, 490 to 512 for CT-FM. Other backbones: 12 per channel, or 16 if all channels
    are at full resolution. Since a Swin works in place, it needs only a quarter; its estimate was not changed, so that tiles, and
    therefore the features of long scans, stay the same.
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
    """Apply a network to a whole scan (X Y Z) in tiles, and blend its maps.

    In addition to the maps, only one batch of tiles is in memory.

    Args:
        forward: Maps a batch of tiles, in the scan's own values, to feature maps whose sides divide those of the tile.
        voxels: The scan.
        tiling: Positions of the tiles.
        fill: Value of the padding.
        batch: Tiles per batch.
        dtype: Type of the sums; float16 halves the memory, with an error of about 1e-3 in probabilities.

    Returns:
        The maps on the grid of the padded scan, on the CPU.
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
    """Yield the start and the weighted maps of each tile; their sum equals the result of `sliding_window_inference`.

    Only one tile is in memory at a time, so that the caller can add up the maps elsewhere, such as in a file. The arguments are
    those of `sliding_window_inference`.
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
    """Like `sliding_window_inference` for a network with one map at full resolution, but yields slabs along `axis`, unpadded.

    Slabs are yielded in order, each with the index of its first plane, as soon as no further tile overlaps them; the memory of a
    slab is reused for the next. As many planes as a tile has and one batch of tiles are in memory, regardless of the length of the
    scan. Sums are computed in a different order, so results may differ by rounding.
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
    """Divide the weights of a tile by the sum over all tiles. Tiles form a grid, so this is a product over the axes."""
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
    """Average a network's outputs over all mirrored versions of a tile (test-time mirroring)."""
    subsets = [flips for count in range(len(axes) + 1) for flips in itertools.combinations([axis + 2 for axis in axes], count)]

    def average(tiles: Tensor) -> list[Tensor]:
        sums: list[Tensor] = []
        for flips in subsets:
            outputs = [torch.flip(output, flips) for output in forward(torch.flip(tiles, flips))]
            sums = [total.add_(output) for total, output in zip(sums, outputs, strict=True)] if sums else outputs
        return [total / len(subsets) for total in sums]

    return average


def mark_scan(tiling: Tiling) -> Bool[Tensor, "X Y Z"]:
    """Mark the voxels of the padded scan that belong to the scan (True) rather than to the padding."""
    inside = torch.zeros(tiling.padded, dtype=torch.bool)
    inside[tiling.scan_box] = True
    return inside


def weight_tile(cells: Sequence[int], floor: float = FLOOR) -> Float[Tensor, "x y z"]:
    """Compute the weight of each cell of a tile: a Gaussian that is 1 at the centre and at least `floor` along each axis."""
    x, y, z = (_weight_axis(count, floor) for count in cells)
    return x[:, None, None] * y[None, :, None] * z[None, None, :]


def _weight_axis(count: int, floor: float) -> Float[Tensor, "n"]:
    places = (torch.arange(count) + 0.5) / count - 0.5
    return torch.exp(-0.5 * (places / SPREAD) ** 2).clamp(min=floor)


def _spread(whole: int, size: int, step: int, alignment: int) -> list[int]:
    """Choose the starts of tiles along an axis: from 0 to the last that fits, at most `step` apart, multiples of `alignment`."""
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
    """Convert positions in voxels to positions on the grid of a tile's map."""
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
