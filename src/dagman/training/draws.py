"""All numbers that a step draws besides the crops, by address (seed, purpose, step, view), as plain tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dagman.method.masking import DRAWS
from dagman.randomness import generator


def draw_uniform(seed: int, purpose: str, step: int | str, views: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers (B, *shape), one address a view, float32 in [0, 1)."""
    rows = [generator(seed, purpose, step, view).random(shape, dtype=np.float32) for view in views]
    return torch.from_numpy(np.stack(rows))


def draw_masking(seed: int, step: int | str, views: Sequence[int], units: int) -> Tensor:
    """Numbers for the masking, B N 8."""
    return draw_uniform(seed, "masking", step, views, (units, DRAWS))


def draw_noise(seed: int, step: int | str, views: Sequence[int], count: int) -> Tensor:
    """Numbers for the teacher's noise, B M."""
    return draw_uniform(seed, "noise", step, views, (count,))


def draw_drop_path(seed: int, step: int | str, views: Sequence[int], branches: int) -> Tensor:
    """Numbers for stochastic depth, L B."""
    return draw_uniform(seed, "drop path", step, views, (branches,)).T.contiguous()
