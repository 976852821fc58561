"""The noisy teacher's patch dropout (paper 3.2): units or patch tokens of the teacher's input are set to zero."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dagman.method.masking import Grid, count_share, expand_units, pick_lowest

PATCHES_PER_UNIT = 8
"""Patch tokens along one side of a unit: 16 voxels / 2."""


def drop_units(draws: Float[Tensor, "B N"], grid: Grid, share: float) -> Bool[Tensor, "B X Y Z"]:
    """Drop exactly floor(r_t N) units of each view. Returns a mask on the patch-token grid; True = dropped."""
    return expand_units(pick_lowest(draws, count_share(share, draws.shape[1])), grid, PATCHES_PER_UNIT)


def drop_patches(draws: Float[Tensor, "B T"], grid: Grid, share: float) -> Bool[Tensor, "B X Y Z"]:
    """Drop exactly floor(r_t T) single patch tokens of each view; `grid` is the grid of units. True = dropped."""
    dropped = pick_lowest(draws, count_share(share, draws.shape[1]))
    x, y, z = (side * PATCHES_PER_UNIT for side in grid)
    return dropped.unflatten(1, (x, y, z))


def count_noise_draws(grid: Grid, granularity: str) -> int:
    """Count the random numbers that a view needs: one per unit, or one per patch token."""
    units = grid[0] * grid[1] * grid[2]
    return units if granularity == "unit" else units * PATCHES_PER_UNIT**3


def patch_dropout(draws: Tensor, grid: Grid, share: float, granularity: str) -> Bool[Tensor, "B X Y Z"] | None:
    """Draw the teacher's dropped patch tokens; None for a clean teacher (share 0)."""
    if share == 0:
        return None
    return drop_units(draws, grid, share) if granularity == "unit" else drop_patches(draws, grid, share)


def share_dropped(dropped: Bool[Tensor, "B X Y Z"]) -> Float[Tensor, "B"]:
    """Share of patch tokens dropped in each view."""
    return dropped.flatten(1).to(torch.float32).mean(dim=1)
