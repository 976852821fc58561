"""Masking the student's input (paper 3.1). In every mask, True means masked.

Notation: B views, N units on a grid (x, y, z), N = x y z in C order. All maskings have the same signature:

    masking(attention B N | None, grid, counts, draws B N 8) -> hidden B N

`draws` are uniform numbers in [0, 1) that are drawn beforehand, so a masking is a pure function: column 0 breaks ties,
column 1 picks hints, and columns 2 to 7 place boxes. All maskings hide `counts.hidden` units, so that methods are comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dagman.model.windows import locate

Grid = tuple[int, int, int]
DRAWS = 8
"""Random numbers per unit and view that a masking receives."""


def count_share(share: float, n: int) -> int:
    """floor(share * n), tolerant of rounding: 0.7 of 10 is 7, although the product of floats is slightly less."""
    return math.floor(share * n + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of units for a masking.

    Attributes:
        ranked: Units taken from the ranking, floor(rN).
        hints: Units among them that stay visible, floor(sN).
        pool: First units of the ranking from which the hints are drawn, floor(hint_pool N).
    """

    ranked: int
    hints: int
    pool: int

    @property
    def hidden(self) -> int:
        """Units that are masked, after the hints are taken out."""
        return self.ranked - self.hints


def count_units(n: int, ratio: float, hints: float, hint_pool: float | None = None) -> Counts:
    """Compute the counts for n units at masking ratio r, share of hints s and hint pool (default s: the most attended units)."""
    visible = count_share(hints, n)
    pool = visible if hint_pool is None else max(visible, count_share(hint_pool, n))
    return Counts(ranked=count_share(ratio, n), hints=visible, pool=pool)


Masking = Callable[[Tensor | None, Grid, Counts, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class MaskingShares:
    """Masking ratio r, share of hints s, and hint pool (default s), as shares of a view's units (METHOD, Masking the student)."""

    ratio: float
    hints: float
    hint_pool: float | None = None

    def count(self, n: int) -> Counts:
        """Compute the counts for n units."""
        return count_units(n, self.ratio, self.hints, self.hint_pool)


def mask_units(
    masking: Masking,
    attention: Float[Tensor, "B N"] | None,
    grid: Grid,
    shares: MaskingShares,
    draws: Float[Tensor, "B N D"],
    inside: Int[Tensor, "B 2 3"] | None = None,
) -> Bool[Tensor, "B N"]:
    """Apply a masking to each view, restricted to the units that lie inside the scan.

    Args:
        masking: One of `MASKINGS`, or another function of the same signature.
        attention: The teacher's [CLS] attention; None for maskings that do not use it.
        grid: Grid of units of a view.
        shares: Masking ratio and hints.
        draws: Uniform numbers in [0, 1).
        inside: The part of each view inside the scan, as first unit and last unit + 1, on the CPU; None if all views lie inside.
            The masking sees only this part, so that the shares refer to it and padding is never masked.

    Raises:
        ValueError: The masking hid a different number of units than requested (checked on the CPU only).
    """
    masked = masking(attention, grid, shares.count(math.prod(grid)), draws)
    boxes = [] if inside is None else inside.tolist()
    padded = [row for row, box in enumerate(boxes) if box != [[0, 0, 0], list(grid)]]
    masked = masked.clone(memory_format=torch.contiguous_format) if padded else masked
    for row in padded:
        box = tuple(slice(*ends) for ends in zip(*boxes[row], strict=True))
        masked[row] = False
        view = masked[row].view(grid)[box]
        x, y, z = view.shape
        part = draws[row].unflatten(0, grid)[box].flatten(0, 2)[None]
        seen = None if attention is None else attention[row].view(grid)[box].flatten()[None]
        view.copy_(masking(seen, (x, y, z), shares.count(x * y * z), part).view(x, y, z))
    # Checking this on another device would force the host to wait for it.
    if masked.device.type == "cpu" and masked.sum(dim=1).tolist() != (asked := count_masked(shares, grid, len(draws), inside)):
        raise ValueError(f"the masking hid {masked.sum(dim=1).tolist()} units of the views where {asked} were requested")
    return masked


def count_masked(shares: MaskingShares, grid: Grid, views: int, inside: Int[Tensor, "B 2 3"] | None = None) -> list[int]:
    """Count the units of each view that `mask_units` will hide, without computing the mask; `inside` as there."""
    if inside is None:
        return [shares.count(math.prod(grid)).hidden] * views
    return [shares.count(units).hidden for units in (inside[:, 1] - inside[:, 0]).prod(dim=1).tolist()]


def locate_units(units: Bool[Tensor, "B N"], count: int | None = None) -> Int[Tensor, "R"]:
    """Indices of True in `units.flatten()`, ascending. count: their number, if known; saves waiting for the device."""
    return locate(units.flatten(), count)


def rank_units(attention: Float[Tensor, "B N"], draws: Float[Tensor, "B N D"]) -> Int[Tensor, "B N"]:
    """Rank units from most to least attended; ties are in random order, so that constant attention gives a uniform ranking."""
    shuffled = draws[..., 0].argsort(dim=1, stable=True)
    by_attention = attention.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, by_attention)


def mask_attention_high(
    attention: Float[Tensor, "B N"] | None, grid: Grid, counts: Counts, draws: Float[Tensor, "B N D"]
) -> Bool[Tensor, "B N"]:
    """Hide the most attended units except for the hints (AttMask; s = 0 hides all of them)."""
    ranked = rank_units(_require(attention), draws)
    hidden = torch.zeros(ranked.shape, dtype=torch.bool, device=ranked.device)
    hidden.scatter_(1, ranked[:, : counts.ranked], True)
    pool = ranked[:, : counts.pool]
    picked = draws[..., 1].gather(1, pool).argsort(dim=1, stable=True)[:, : counts.hints]
    return hidden.scatter_(1, pool.gather(1, picked), False)


def mask_attention_low(
    attention: Float[Tensor, "B N"] | None, grid: Grid, counts: Counts, draws: Float[Tensor, "B N D"]
) -> Bool[Tensor, "B N"]:
    """Hide the least attended units [MST]."""
    ranked = rank_units(_require(attention), draws)
    hidden = torch.zeros(ranked.shape, dtype=torch.bool, device=ranked.device)
    return hidden.scatter_(1, ranked[:, ranked.shape[1] - counts.hidden :], True)


def mask_random(
    attention: Float[Tensor, "B N"] | None, grid: Grid, counts: Counts, draws: Float[Tensor, "B N D"]
) -> Bool[Tensor, "B N"]:
    """Hide units uniformly at random [SMIT, SimMIM]."""
    return pick_lowest(draws[..., 0], counts.hidden)


def mask_block(
    attention: Float[Tensor, "B N"] | None, grid: Grid, counts: Counts, draws: Float[Tensor, "B N D"]
) -> Bool[Tensor, "B N"]:
    """Hide boxes of random size, aspect ratio and position until the count is exact; the last box is truncated [iBOT]."""
    rows = [_fill_with_boxes(grid, counts.hidden, view) for view in draws.cpu()]
    return torch.stack(rows).to(draws.device)


MASKINGS: dict[str, Masking] = {
    "attention-high": mask_attention_high,
    "attention-low": mask_attention_low,
    "random": mask_random,
    "block": mask_block,
}


def pick_lowest(draws: Float[Tensor, "B N"], count: int) -> Bool[Tensor, "B N"]:
    """Mark the `count` lowest draws of each row, which is a uniform choice of exactly that many."""
    chosen = draws.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros(draws.shape, dtype=torch.bool, device=draws.device).scatter_(1, chosen, True)


def expand_units(hidden: Bool[Tensor, "B N"], grid: Grid, factor: int) -> Bool[Tensor, "B X Y Z"]:
    """Expand units by `factor` along each axis of their grid: 8 gives patch tokens, 16 gives voxels."""
    volume = hidden.unflatten(1, grid)
    for axis in (1, 2, 3):
        volume = volume.repeat_interleave(factor, dim=axis)
    return volume


def _require(attention: Tensor | None) -> Tensor:
    if attention is None:
        raise ValueError("this masking needs the teacher's attention")
    return attention


def _fill_with_boxes(grid: Grid, count: int, draws: Float[Tensor, "N D"]) -> Bool[Tensor, "N"]:
    n = math.prod(grid)
    hidden = torch.zeros(grid, dtype=torch.bool)
    left = count
    for draw in draws.tolist():
        if left == 0:
            break
        # iBOT's ranges: at most as many units as are left, with aspect ratios between 1/3 and 3.
        volume = 1 + draw[2] * (left - 1)
        aspects = [3 ** (2 * value - 1) for value in draw[3:5]]
        edge = (volume / (aspects[0] * aspects[1])) ** (1 / 3)
        sides = [min(side, max(1, round(edge * scale))) for side, scale in zip(grid, (aspects[0], aspects[1], 1.0), strict=True)]
        starts = [int(value * (side - extent + 1)) for value, side, extent in zip(draw[5:8], grid, sides, strict=True)]
        box = hidden[tuple(slice(start, start + extent) for start, extent in zip(starts, sides, strict=True))]
        free = (~box).nonzero()[:left]
        box[tuple(free.T)] = True
        left -= len(free)
    flat = hidden.reshape(n)
    if left:
        free_units = (~flat).nonzero()[:, 0]
        flat[free_units[draws[free_units, 0].argsort(stable=True)[:left]]] = True
    return flat
