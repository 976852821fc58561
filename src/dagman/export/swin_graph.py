"""The Swin encoder written so that one graph serves views of any size (torch.export, ONNX).

dagman's own forward pass looks at the sides and plans windows for them; a graph has no sides yet. Here what depends on them is
computed: where each token stands in its window, as indices. An axis no longer than the window is one window without a shift; places
beyond it are attended by nobody, and the offsets between the others, and so their rows of the bias table, are those of the shorter
window. Each stage's grid has symbols of its own (read from a tensor): carried on, they would grow until nothing simplifies them.
Same features as `SwinEncoder`, to rounding.

Letters: B views, C channels, X Y Z sides, L tokens, W windows, n places of a window, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dagman.model import SwinEncoder
from dagman.model.swin import PatchMerging, SwinBlock, SwinStage
from dagman.model.window_attention import relative_positions

Sides = list[Any]
"""Three whole numbers, or symbols of them."""


class FeatureGraph(nn.Module):
    """Views in HU (B 1 X Y Z, float32, at the encoder's spacing and in RAS+ order) to feature maps x1..x4; any sides."""

    offsets: Tensor

    def __init__(self, encoder: SwinEncoder, low: float, high: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.low, self.high = low, high
        window = encoder.shape.window
        # Made before tracing: what a trace makes would stay in the function's cache, and serve later calls with no real numbers.
        self.register_buffer("offsets", relative_positions((window,) * 3, window, torch.device("cpu")).clone())

    def forward(self, hu: Tensor) -> tuple[Tensor, ...]:
        """The maps, float32."""
        view = ((hu - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        tokens, sides = _embed(self.encoder, view)
        maps = []
        for stage in self.encoder.stages:
            numbers = [count_units(length, cast(SwinStage, stage).window) for length in sides]
            plans: dict[int, _Plan] = {}
            for block in cast(SwinStage, stage).blocks:
                shift = cast(SwinBlock, block).shift
                plan = plans.get(shift) or _plan(sides, numbers, cast(SwinStage, stage).window, shift)
                plans[shift] = plan
                tokens = _run_block(cast(SwinBlock, block), tokens, plan, self.offsets)
            tokens, sides = _merge(cast(SwinStage, stage).merging, tokens, sides)
            maps.append(tokens.reshape(tokens.shape[0], *sides, tokens.shape[-1]).permute(0, 4, 1, 2, 3))
        return tuple(maps)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """A grid in windows: their number, the token of each place, whether there is one, pairs apart, the place of each token."""

    windows: Any
    index: Tensor
    inside: Tensor
    masked: Tensor
    places: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Axis:
    """One axis of a grid in windows: `order` (windows, side) is the token at each place, `place` (length) the reverse."""

    order: Tensor
    place: Tensor
    region: Tensor
    "Places of one window with equal numbers may attend to one another."
    outside: Tensor
    "Beyond the grid: a zero stands there."
    unseen: Tensor
    "Beyond an axis that is one window: nobody attends to it."


def count_units(length: Any, unit: int) -> Any:
    """The number of units along a length, rounded up, as a symbol of its own."""
    total = (torch.ones(length, dtype=torch.long).sum() + (unit - 1)) // unit
    number = total.item()
    torch._check(number >= 1)
    torch._check(number <= 1 << 20)
    return number


def _embed(encoder: SwinEncoder, view: Tensor) -> tuple[Tensor, Sides]:
    patches, sides = cut_patches(view, encoder.shape.patch, encoder.mean, encoder.std)
    return encoder.patch_projection(patches), sides


def cut_patches(view: Tensor, patch: int, mean: Tensor, std: Tensor) -> tuple[Tensor, Sides]:
    """The standardised voxels of each patch (B N patch^3) of views (B 1 X Y Z) in [0, 1], padded at their far end; and the grid."""
    sides = [count_units(length, patch) for length in view.shape[2:]]
    view = (pad_sides(view, sides, patch) - mean) / std
    x, y, z, p = *sides, patch
    patches = view.reshape(view.shape[0], 1, x, p, y, p, z, p).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return patches.reshape(view.shape[0], x * y * z, p**3), sides


def pad_sides(view: Tensor, numbers: Sides, unit: int) -> Tensor:
    """A view padded at its far end with intensity 0, to so many units along each axis."""
    for axis, number in enumerate(numbers, start=2):
        length = view.shape[axis]
        index = torch.arange(number * unit)
        view = view.index_select(axis, index.clamp(max=length - 1))
        inside = (index < length).to(view.dtype)
        view = view * inside.reshape([-1 if place == axis else 1 for place in range(5)])
    return view


def _run_block(block: SwinBlock, tokens: Tensor, plan: _Plan, offsets: Tensor) -> Tensor:
    tokens = tokens + _attend(block, block.norm1(tokens), plan, offsets)
    mlp = block.mlp
    return tokens + mlp.linear2(nn.functional.gelu(mlp.linear1(block.norm2(tokens))))


def _attend(block: SwinBlock, tokens: Tensor, plan: _Plan, offsets: Tensor) -> Tensor:
    attention, w = block.attention, block.window
    B, _, C = tokens.shape
    W, n, heads = plan.windows, w**3, attention.heads
    x = tokens.index_select(1, plan.index) * plan.inside[None, :, None].to(tokens.dtype)
    q, k, v = attention.qkv(x.reshape(B, W, n, C)).reshape(B, W, n, 3, heads, C // heads).permute(3, 0, 1, 4, 2, 5).unbind()
    bias = attention.bias_table[offsets].permute(2, 0, 1)
    logits = (q * attention.scale) @ k.transpose(-2, -1) + bias
    probabilities = torch.softmax(logits.masked_fill(plan.masked[None, :, None], -math.inf), dim=-1)
    attended = attention.proj((probabilities @ v).transpose(2, 3).reshape(B, W * n, C))
    return attended.index_select(1, plan.places)


def _plan(sides: Sides, numbers: Sides, side: int, shift: int) -> _Plan:
    axes = [_cut_axis(length, number, side, shift) for length, number in zip(sides, numbers, strict=True)]
    W, n = math.prod(numbers), side**3
    region = _combine([axis.region for axis in axes], [4, 4, 4]).reshape(W, n)
    unseen = _any([axis.unseen for axis in axes]).reshape(W, n)
    places = [axis.place for axis in axes]
    window = _combine([(place // side)[:, None] for place in places], numbers)
    inner = _combine([(place % side)[:, None] for place in places], [side] * 3)
    return _Plan(
        windows=W,
        index=_combine([axis.order for axis in axes], sides).reshape(W * n),
        inside=~_any([axis.outside for axis in axes]).reshape(W * n),
        masked=(region[:, :, None] != region[:, None, :]) | unseen[:, None, :],
        places=(window * n + inner).reshape(math.prod(sides)),
    )


def _cut_axis(length: Any, number: Any, side: int, shift: int) -> _Axis:
    place = torch.arange(number)[:, None] * side + torch.arange(side)
    whole = torch.ones(number, dtype=torch.long).sum() * side
    count = torch.ones(length, dtype=torch.long).sum()
    several = count > side
    step = several.long() * shift
    order = (place + step) % whole
    region = ((place >= whole - side).long() + (place >= whole - shift).long()) * (step > 0).long()
    outside = order >= count
    return _Axis(
        order=torch.minimum(order, count - 1),
        place=(torch.arange(length) - step + whole) % whole,
        region=region,
        outside=outside,
        unseen=outside & ~several,
    )


def _combine(numbers: list[Tensor], sizes: Sides) -> Tensor:
    """One number of three, X slowest, for each window and place in it: (a, w) of each axis to (a b c, w w w), flattened later."""
    x, y, z = (_spread(values, axis) for axis, values in enumerate(numbers))
    return (x * sizes[1] + y) * sizes[2] + z


def _any(flags: list[Tensor]) -> Tensor:
    x, y, z = (_spread(values, axis) for axis, values in enumerate(flags))
    return x | y | z


def _spread(values: Tensor, axis: int) -> Tensor:
    """(a, w) to six axes: windows along X, Y, Z, then places along X, Y, Z."""
    shape = [1] * 6
    shape[axis], shape[axis + 3] = values.shape[0], values.shape[1]
    return values.reshape(shape)


def _merge(merging: PatchMerging, tokens: Tensor, sides: Sides) -> tuple[Tensor, Sides]:
    B, _, C = tokens.shape
    halves = [count_units(length, 2) for length in sides]
    places = [torch.arange(half)[:, None] * 2 + torch.arange(2) for half in halves]
    index = _combine([place.clamp(max=length - 1) for place, length in zip(places, sides, strict=True)], sides)
    outside = _any([place >= length for place, length in zip(places, sides, strict=True)])
    total = math.prod(halves)
    x = tokens.index_select(1, index.reshape(total * 8)) * (~outside).reshape(total * 8)[None, :, None].to(tokens.dtype)
    return merging.reduction(merging.norm(x.reshape(B, total, 8 * C))), halves
