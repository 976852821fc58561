"""A whole scan through a segmentation network that sees one window at a time: half-overlapping windows, blended by Gaussians.

Memory: one sum of K classes on the scan's grid, on the CPU, and one batch of windows; no copy of either.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

Triple = tuple[int, int, int]
Forward = Callable[[Float[Tensor, "B 1 S S S"]], Float[Tensor, "B K S S S"]]
"""Windows (the scan's own values) to chances of K classes, each voxel's summing to 1."""

OVERLAP = 0.5
"""Share of a window's side that the next one covers too (nnU-Net's)."""
SPREAD = 1 / 8
"""Standard deviation of the Gaussian in sides of a window (nnU-Net's)."""
LEAST_WEIGHT = 0.05
"""Floor of the Gaussian along each axis: its cube, the weight of a corner, is still a normal number in float16."""


def slide_windows(
    forward: Forward,
    voxels: NDArray[np.int16],
    side: int,
    *,
    fill: int,
    overlap: float = OVERLAP,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "K X Y Z"]:
    """Chances of K classes at each voxel of a scan (X Y Z, of any size), on the CPU.

    side: of a window in voxels. fill: value beyond the ends of a scan smaller than a window. batch: windows at once.
    dtype: of the sum; float16 halves the memory, and costs about 1e-3 in the chances.
    """
    padded = tuple(max(size, side) for size in voxels.shape)
    before = tuple((whole - size) // 2 for whole, size in zip(padded, voxels.shape, strict=True))
    starts = plan_windows(padded, side, overlap)
    weights = weigh_window(side)
    total: Tensor | None = None
    for first in range(0, len(starts), batch):
        chosen = starts[first : first + batch]
        windows = np.stack([_cut_window(voxels, start, before, side, fill) for start in chosen])
        chances = forward(torch.from_numpy(windows)[:, None]).float().cpu()
        if total is None:
            total = torch.zeros((chances.shape[1], *voxels.shape), dtype=dtype)
        for start, window in zip(chosen, chances, strict=True):
            inside, outside = _match_places(start, before, side, voxels.shape)
            total[(slice(None), *inside)] += (window[(slice(None), *outside)] * weights[outside]).to(dtype)
    assert total is not None
    # Chances sum to 1 at each voxel, so the classes' sum is the weight. A class at a time: no second copy of all.
    weight = sum(total[code].float() for code in range(len(total)))
    for code in range(len(total)):
        total[code] = total[code].float() / weight
    return total


def mirror_forward(forward: Forward, axes: Sequence[int] = (0, 1, 2)) -> Forward:
    """The mean of a network's answers over all mirrored forms of a window, mirrored back (test-time mirroring)."""
    subsets = [flips for count in range(len(axes) + 1) for flips in itertools.combinations([axis + 2 for axis in axes], count)]

    def average(windows: Tensor) -> Tensor:
        return sum(torch.flip(forward(torch.flip(windows, flips)), flips) for flips in subsets) / len(subsets)  # type: ignore[return-value]

    return average


def plan_windows(padded: Sequence[int], side: int, overlap: float = OVERLAP) -> list[Triple]:
    """First voxels of windows that cover a grid with sides of at least `side`, evenly spread, overlapping by at least `overlap`."""
    axes = []
    for size in padded:
        steps = int(np.ceil((size - side) / max(1, int(side * (1 - overlap)))))
        axes.append([round(number * (size - side) / max(steps, 1)) for number in range(steps + 1)])
    return [(x, y, z) for x, y, z in itertools.product(*axes)]


def weigh_window(side: int) -> Float[Tensor, "S S S"]:
    """A Gaussian about the window's middle, 1 there: a voxel at a border saw half of its surroundings."""
    places = (torch.arange(side) + 0.5) / side - 0.5
    axis = torch.exp(-0.5 * (places / SPREAD) ** 2).clamp(min=LEAST_WEIGHT)
    return axis[:, None, None] * axis[None, :, None] * axis[None, None, :]


def _cut_window(voxels: NDArray[np.int16], start: Triple, before: Sequence[int], side: int, fill: int) -> NDArray[np.float32]:
    window = np.full((side,) * 3, fill, dtype=np.float32)
    inside, outside = _match_places(start, before, side, voxels.shape)
    window[outside] = voxels[inside]
    return window


def _match_places(
    start: Triple, before: Sequence[int], side: int, shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window lies in the scan, and where that part lies in the window."""
    inside, outside = [], []
    for first, pad, size in zip(start, before, shape, strict=True):
        low, high = max(first - pad, 0), min(first - pad + side, size)
        inside.append(slice(low, high))
        outside.append(slice(low - first + pad, high - first + pad))
    return tuple(inside), tuple(outside)
