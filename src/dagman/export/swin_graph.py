"""The Swin encoder as a module that can be traced as one graph for views of any size (torch.export, ONNX).

dagman's own forward pass plans windows in Python from the sides of the view, which are unknown during tracing. Here the position of
each token in its window is computed as tensors of indices. An axis that is not longer than the window is a single window without a
shift: positions beyond its end are masked, and the remaining offsets, and so the rows of the bias table, are those of the shorter
window. The grid of each stage has new symbols (read from a tensor); otherwise expressions would grow from stage to stage until they
cannot be simplified. Features equal those of `SwinEncoder` up to rounding.

Notation: B views, C channels, X Y Z sides, L tokens, W windows, n positions in a window, H heads.
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
"""Three integers, or symbols of integers."""


class FeatureGraph(nn.Module):
    """Map views in HU (B 1 X Y Z, float32, at the encoder's spacing, in RAS+ order) to feature maps x1 to x4; any size."""

    offsets: Tensor

    def __init__(self, encoder: SwinEncoder, low: float, high: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.low, self.high = low, high
        window = encoder.shape.window
        # Created before tracing: otherwise the cache of the function would keep a fake tensor and return it in later calls.
        self.register_buffer("offsets", relative_positions((window,) * 3, window, torch.device("cpu")).clone())

    def forward(self, hu: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps in float32."""
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
    """The partition of a grid of tokens into windows.

    Attributes:
        windows: Number of windows W.
        index: Token at each position of the windows (W n).
        inside: Whether there is a token at each position (W n).
        masked: Pairs of positions that must not attend to each other (W n n).
        places: Position of each token among those of the windows (L).
    """

    windows: Any
    index: Tensor
    inside: Tensor
    masked: Tensor
    places: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Axis:
    """The partition of one axis into windows.

    Attributes:
        order: Token at each position (windows, side).
        place: Position of each token (length); the inverse of `order`.
        region: Positions of a window attend to each other only if these numbers are equal (windows, side).
        outside: Positions beyond the grid, which hold zeros (windows, side).
        unseen: Positions beyond an axis that is a single window; they are masked (windows, side).
    """

    order: Tensor
    place: Tensor
    region: Tensor
    outside: Tensor
    unseen: Tensor


def count_units(length: Any, unit: int) -> Any:
    """Count the units along a length, rounded up, as a new symbol."""
    total = (torch.ones(length, dtype=torch.long).sum() + (unit - 1)) // unit
    number = total.item()
    torch._check(number >= 1)
    torch._check(number <= 1 << 20)
    return number


def _embed(encoder: SwinEncoder, view: Tensor) -> tuple[Tensor, Sides]:
    patches, sides = cut_patches(view, encoder.shape.patch, encoder.mean, encoder.std)
    return encoder.patch_projection(patches), sides


def cut_patches(view: Tensor, patch: int, mean: Tensor, std: Tensor) -> tuple[Tensor, Sides]:
    """Cut views (B 1 X Y Z, in [0, 1]) into patches.

    Returns:
        The standardised voxels of each patch (B N patch^3), and the grid of patches. Views are padded at the end of each axis.
    """
    sides = [count_units(length, patch) for length in view.shape[2:]]
    view = (pad_sides(view, sides, patch) - mean) / std
    x, y, z, p = *sides, patch
    patches = view.reshape(view.shape[0], 1, x, p, y, p, z, p).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return patches.reshape(view.shape[0], x * y * z, p**3), sides


def pad_sides(view: Tensor, numbers: Sides, unit: int) -> Tensor:
    """Pad a view with intensity 0 at the end of each axis, to `numbers` units of `unit` voxels."""
    for axis, number in enumerate(numbers, start=2):
        length = view.shape[axis]
        index = torch.arange(number * unit)
        view = view.index_select(axis, index.clamp(max=length - 1))
        inside = (index < length).to(view.dtype)
        view = view * inside.reshape([-1 if dimension == axis else 1 for dimension in range(5)])
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
    """Combine indices along X, Y, Z, each (windows, positions), into flat indices with X slowest.

    The result has six axes, windows along X, Y, Z, then positions along X, Y, Z, and is flattened later.
    """
    x, y, z = (_spread(values, axis) for axis, values in enumerate(numbers))
    return (x * sizes[1] + y) * sizes[2] + z


def _any(flags: list[Tensor]) -> Tensor:
    x, y, z = (_spread(values, axis) for axis, values in enumerate(flags))
    return x | y | z


def _spread(values: Tensor, axis: int) -> Tensor:
    """Reshape (windows, positions) along one axis to six axes: windows along X, Y, Z, then positions along X, Y, Z."""
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
