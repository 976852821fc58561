"""Partition tokens into attention windows and back: a precomputed gather, and the roll and partition that it replaces.

Notation: B views, L tokens of a grid, W windows, n tokens of a window, C channels.
Swin (Liu et al., ICCV 2021) cuts the token grid into windows, in every second block after rolling the grid by half a window.
Rolling, padding and cutting only move whole tokens, so a single index describes them. `gather_windows` and `gather_tokens` use
this index (a training step is 1.2 to 1.4 times as fast on a CPU); `roll_into_windows` and `roll_into_tokens` are the reference,
with the same signatures and bit-identical results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Triple = tuple[int, int, int]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_CACHE_SIZE = 256


def keep_results(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Cache the results of a function of sizes and a device.

    torch.compile uses results cached earlier as inputs of its graph. Otherwise, tracing neither reads nor writes the cache, because
    traced tensors have no values and sizes may be symbols.
    """
    cache: dict[tuple[Any, ...], Result] = {}

    @wraps(function)
    def look_up(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        key = (*args, *kwargs.values())
        if torch.compiler.is_dynamo_compiling():
            return cache[key] if key in cache else function(*args, **kwargs)
        traced = type(torch.empty(0)) is not Tensor or any(type(n) is torch.SymInt for value in key for n in _list_parts(value))
        if traced:
            return function(*args, **kwargs)
        if key not in cache:
            if len(cache) >= _CACHE_SIZE:
                del cache[next(iter(cache))]
            # Tensors created in inference mode could not be used in a later training step.
            with torch.inference_mode(False), torch.no_grad():
                cache[key] = function(*args, **kwargs)
        return cache[key]

    vars(look_up)["cache_clear"] = cache.clear
    return look_up


def _list_parts(argument: object) -> tuple[object, ...]:
    return argument if isinstance(argument, tuple) else (argument,)


def locate(flags: Bool[Tensor, " flags"], count: int | None = None) -> Int[Tensor, " places"]:
    """Find the indices of True flags, ascending; giving their number `count`, if known, avoids waiting for the device."""
    return flags.nonzero()[:, 0] if count is None else flags.to(torch.uint8).argsort(descending=True, stable=True)[:count]


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowPlan:
    """How a grid of tokens is partitioned into windows, each with n places for tokens.

    Attributes:
        grid: Number of tokens along X, Y, Z.
        window: Window size in tokens along each axis, as used on this grid (see `fit_window`).
        shift: Shift in tokens along each axis.
        to_windows: Token in each place of each window (W*n); `tokens`, one past the last, is padding.
        to_tokens: Place of each token (L), the inverse of `to_windows`.
        masked: True for pairs of places that share a window only because of wrap-around, and must not attend to each other; None
            without a shift, or if masks were not requested.
        regions: Part of the grid that each place comes from; pairs from different regions are masked. None without a shift.
        valid: True for places that hold a token rather than padding.
        rows: `to_windows` as int32 for kernels, where each padding place has its own row after the tokens.
        padding: Number of padding places.
    """

    grid: Triple
    window: Triple
    shift: Triple
    to_windows: Int[Tensor, " places"]
    to_tokens: Int[Tensor, " tokens"]
    masked: Bool[Tensor, "W n n"] | None
    regions: Int[Tensor, "W n"] | None
    valid: Bool[Tensor, "W n"]
    rows: Int[Tensor, " places"]
    padding: int

    @property
    def tokens(self) -> int:
        """Number L of tokens in the grid."""
        return math.prod(self.grid)

    @property
    def places(self) -> int:
        """Number n of tokens in a window."""
        return math.prod(self.window)

    @property
    def padded(self) -> Triple:
        """The grid rounded up to whole windows."""
        x, y, z = (math.ceil(g / w) * w for g, w in zip(self.grid, self.window, strict=True))
        return x, y, z


def fit_window(grid: Triple, side: int, shift: int) -> tuple[Triple, Triple]:
    """Fit window and shift to a grid: an axis no longer than the window becomes a single window without a shift."""
    window = (min(grid[0], side), min(grid[1], side), min(grid[2], side))
    shifts = tuple(0 if g <= side else shift for g in grid)
    return window, (shifts[0], shifts[1], shifts[2])


@keep_results
def plan_windows(grid: Triple, side: int, shift: int, device: torch.device, *, masks: bool = True) -> WindowPlan:
    """Plan windows of `side` tokens on a grid that is rolled by `shift` tokens. Results are cached.

    `masks` is whether to compute `masked`, which takes n bytes per token; it can also be derived from `regions` in parts.
    """
    window, shifts = fit_window(grid, side, shift)
    padded = [math.ceil(g / w) * w for g, w in zip(grid, window, strict=True)]
    tokens = math.prod(grid)
    numbers = torch.arange(tokens, device=device).reshape(grid)
    numbers = F.pad(numbers, _padding(grid, padded), value=tokens)
    rolled = torch.roll(numbers, tuple(-s for s in shifts), dims=(0, 1, 2))
    to_windows = _cut(rolled[None, ..., None], window).flatten()
    to_tokens = torch.argsort(to_windows)[:tokens]
    places = math.prod(window)
    regions = _number_regions(padded, window, shifts, device) if any(shifts) else None
    masked = None if regions is None or not masks else regions[:, :, None] != regions[:, None, :]
    valid = to_windows < tokens
    return WindowPlan(
        grid=grid,
        window=window,
        shift=shifts,
        to_windows=to_windows,
        to_tokens=to_tokens,
        masked=masked,
        regions=regions,
        valid=valid.reshape(-1, places),
        rows=torch.where(valid, to_windows, tokens - 1 + (~valid).cumsum(0)).int(),
        padding=math.prod(padded) - tokens,
    )


def gather_windows(x: Float[Tensor, "B L C"], plan: WindowPlan) -> Float[Tensor, "BW n C"]:
    """Gather tokens into windows, padded with zeros. Window w of view b is row b * W + w."""
    rows = _Rows.apply(x, plan.to_windows, plan.to_tokens)
    return rows.reshape(-1, plan.places, x.shape[-1])


def gather_tokens(windows: Float[Tensor, "BW n C"], plan: WindowPlan) -> Float[Tensor, "B L C"]:
    """Gather windows back into tokens, without padding; the inverse of `gather_windows`."""
    rows = windows.reshape(-1, len(plan.to_windows), windows.shape[-1])
    return _Rows.apply(rows, plan.to_tokens, plan.to_windows)


def roll_into_windows(x: Float[Tensor, "B L C"], plan: WindowPlan) -> Float[Tensor, "BW n C"]:
    """Reference for `gather_windows`: pad, roll and cut, as in the paper."""
    grid = x.reshape(len(x), *plan.grid, -1)
    grid = F.pad(grid, (0, 0, *_padding(plan.grid, plan.padded)))
    return _cut(torch.roll(grid, tuple(-s for s in plan.shift), dims=(1, 2, 3)), plan.window)


def roll_into_tokens(windows: Float[Tensor, "BW n C"], plan: WindowPlan) -> Float[Tensor, "B L C"]:
    """Reference for `gather_tokens`: join, roll back and crop, as in the paper."""
    (X, Y, Z), (x, y, z), C = plan.padded, plan.window, windows.shape[-1]
    grid = windows.reshape(-1, X // x, Y // y, Z // z, x, y, z, C).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, X, Y, Z, C)
    grid = torch.roll(grid, plan.shift, dims=(1, 2, 3))
    return grid[:, : plan.grid[0], : plan.grid[1], : plan.grid[2]].reshape(len(grid), plan.tokens, C)


class _Rows(torch.autograd.Function):
    """Select rows of each view by an index without repetitions; the backward pass selects by the inverse index.

    The backward pass of index_select is an index_add, which is many times slower and, on a GPU, adds in no fixed order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.index, ctx.inverse = index, inverse
        return _take_rows(x, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        return _take_rows(gradients[0], ctx.inverse), None, None


def _take_rows(x: Tensor, index: Tensor) -> Tensor:
    # The index is longer than the rows only if there is padding, which is numbered one past the last row.
    if len(index) > x.shape[1]:
        x = F.pad(x, (0, 0, 0, 1))
    return x.index_select(1, index)


def _cut(grid: Tensor, window: Triple) -> Tensor:
    B, X, Y, Z, C = grid.shape
    x, y, z = window
    cut = grid.reshape(B, X // x, x, Y // y, y, Z // z, z, C).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return cut.reshape(-1, x * y * z, C)


def _padding(grid: Triple, padded: Triple | list[int]) -> list[int]:
    # torch's pad counts axes from the last.
    return [n for g, p in zip(reversed(grid), reversed(padded), strict=True) for n in (0, p - g)]


def _number_regions(padded: list[int], window: Triple, shift: Triple, device: torch.device) -> Tensor:
    """Number the places of windows (int32) so that places from opposite ends of the rolled grid have different numbers."""
    region = torch.zeros(padded, dtype=torch.long, device=device)
    for axis, (side, w, s) in enumerate(zip(padded, window, shift, strict=True)):
        place = torch.arange(side, device=device)
        number = (place >= side - w).long() + (place >= side - s).long() if s else torch.zeros_like(place)
        region = region * 3 + number.reshape([-1 if a == axis else 1 for a in range(3)])
    return _cut(region[None, ..., None], window).squeeze(-1).int().contiguous()
