"""From stored voxels to the network's intensities, on the device that holds them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor

from dagman.errors import SettingsError


def to_unit_range(hu: Num[Tensor, "*any"], low: float, high: float) -> Float[Tensor, "*any"]:
    """HU (or any stored unit) to [0, 1], float32: low and below becomes 0, high and above 1."""
    if not low < high:
        raise SettingsError(f"an intensity range from {low} to {high} is empty", do="Give low < high")
    return ((hu.to(torch.float32) - low) / (high - low)).clamp(0.0, 1.0)


def to_unit_ranges(stored: Num[Tensor, "B channels X Y Z"], ranges: Float[Tensor, "B 2"]) -> Float[Tensor, "B channels X Y Z"]:
    """The same with a range (low, high) for each view: CT and MR may stand in one batch."""
    low, high = (ranges[:, i, None, None, None, None].to(stored.device) for i in (0, 1))
    return ((stored.to(torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
