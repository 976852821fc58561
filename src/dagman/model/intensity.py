"""Map stored voxels to the intensities that networks expect, on the device of the voxels."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor

from dagman.errors import SettingsError


def to_unit_range(hu: Num[Tensor, "*any"], low: float, high: float) -> Float[Tensor, "*any"]:
    """Map HU (or any stored unit) linearly from [low, high] to [0, 1] in float32, and clip values outside.

    Raises:
        SettingsError: If `low` is not below `high`.
    """
    if not low < high:
        raise SettingsError(f"an intensity range from {low} to {high} is empty", do="Give low < high")
    return ((hu.to(torch.float32) - low) / (high - low)).clamp(0.0, 1.0)


def to_unit_ranges(stored: Num[Tensor, "B channels X Y Z"], ranges: Float[Tensor, "B 2"]) -> Float[Tensor, "B channels X Y Z"]:
    """Map each view from its own range (low, high) to [0, 1], since a batch may contain both CT and MR."""
    low, high = (ranges[:, i, None, None, None, None].to(stored.device) for i in (0, 1))
    return ((stored.to(torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
