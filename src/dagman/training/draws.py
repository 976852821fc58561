"""Draws all random numbers of a step except for the crops, as tensors. They depend only on (seed, purpose, step, view)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dagman.method.masking import DRAWS
from dagman.randomness import generator


def draw_uniform(seed: int, purpose: str, step: int | str, views: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Draw uniform float32 numbers in [0, 1) of shape (B, *shape), with one address per view."""
    rows = [generator(seed, purpose, step, view).random(shape, dtype=np.float32) for view in views]
    return torch.from_numpy(np.stack(rows))


def draw_masking(seed: int, step: int | str, views: Sequence[int], units: int) -> Tensor:
    """Draw the numbers for the masking, B N 8."""
    return draw_uniform(seed, "masking", step, views, (units, DRAWS))


def draw_noise(seed: int, step: int | str, views: Sequence[int], count: int) -> Tensor:
    """Draw the numbers for the teacher's noise, B M."""
    return draw_uniform(seed, "noise", step, views, (count,))


def draw_drop_path(seed: int, step: int | str, views: Sequence[int], branches: int) -> Tensor:
    """Draw the numbers for stochastic depth, L B."""
    return draw_uniform(seed, "drop path", step, views, (branches,)).T.contiguous()
