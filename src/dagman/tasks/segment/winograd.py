"""3^3 convolutions with half of the multiplications, by Winograd's minimal filtering along X (docs/decisions/0053).

Four planes of the result depend on six planes of the map, which normally takes twelve 2D convolutions. F(4, 3) of Lavin and Gray
(CVPR 2016) takes six: weighted sums of the six planes are convolved with weighted sums of the kernel's three planes. Planes are
contiguous in memory, so these sums are cheap. In float32, results differ from exact ones by up to 4e-6 of the largest value
(torch's own convolution: 1e-6).

Notation: B views, c and C channels of a map and of its result, X Y Z sides, n tiles (of four planes of the result).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_TILE = 4
_FEW_CHANNELS, _MANY_CHANNELS, _LARGE_PLANE = 16, 24, 64**2
"""Below these numbers of channels, or with small planes, the sums take as much time as they save."""
_MOST_NUMBERS = 2**21
"""Maximum size of the summed planes that are processed at once, so that they stay in the cache."""


def suits_winograd(x: Float[Tensor, "B c X Y Z"], outputs: int) -> bool:
    """Whether `convolve_by_planes` is faster for a map and a number of output channels."""
    _, inputs, X, Y, Z = x.shape
    enough = outputs >= _MANY_CHANNELS or Y * Z >= _LARGE_PLANE
    return min(inputs, outputs) >= _FEW_CHANNELS and X % _TILE == 0 and enough


def convolve_by_planes(x: Float[Tensor, "B c X Y Z"], weight: Float[Tensor, "C c 3 3 3"]) -> Float[Tensor, "B C X Y Z"]:
    """Convolve a channels-last map, padded by one voxel; X must be a multiple of 4."""
    kernels = _transform_kernel(weight)
    planes = x.permute(0, 2, 3, 4, 1)
    B, X, Y, Z, inputs = planes.shape
    result = planes.new_empty(B, X, Y, Z, len(weight))
    at_once = _TILE * max(1, _MOST_NUMBERS // (6 * Y * Z * inputs))
    for view, made in zip(planes, result, strict=True):
        for first in range(0, X, at_once):
            last = min(first + at_once, X)
            few = view[max(0, first - 1) : last + 1]
            if len(few) < last - first + 2:
                few = F.pad(few, (0, 0, 0, 0, 0, 0, int(first == 0), int(last == X)))
            parts = [
                F.conv2d(part.permute(0, 3, 1, 2), kernel, padding=1).permute(0, 2, 3, 1)
                for part, kernel in zip(_transform_planes(few), kernels, strict=True)
            ]
            _join_parts(parts, made[first:last].unflatten(0, (-1, _TILE)))
    return result.permute(0, 4, 1, 2, 3)


def _transform_kernel(weight: Float[Tensor, "C c 3 3 3"]) -> list[Float[Tensor, "C c 3 3"]]:
    before, here, after = weight.unbind(2)
    near, far = before + after, before + 4 * after
    kernels = [before / 4, (near + here) / -6, (near - here) / -6, (far + 2 * here) / 24, (far - 2 * here) / 24, after]
    return [kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels]


def _transform_planes(planes: Float[Tensor, "X+2 Y Z c"]) -> Float[Tensor, "6 n Y Z c"]:
    end = len(planes) - 5
    d0, d1, d2, d3, d4, d5 = (planes[place : place + end : _TILE] for place in range(6))
    parts = planes.new_empty(6, *d0.shape)
    torch.add(d4, d2, alpha=-5, out=parts[0]).add_(d0, alpha=4)
    even, odd = torch.add(d4, d2, alpha=-4), torch.add(d3, d1, alpha=-4)
    torch.add(even, odd, out=parts[1])
    torch.sub(even, odd, out=parts[2])
    torch.sub(d4, d2, out=even)
    torch.sub(d3, d1, out=odd)
    torch.add(even, odd, alpha=2, out=parts[3])
    torch.sub(even, odd, alpha=2, out=parts[4])
    torch.add(d5, d3, alpha=-5, out=parts[5]).add_(d1, alpha=4)
    return parts


def _join_parts(parts: list[Float[Tensor, "n Y Z C"]], result: Float[Tensor, "n 4 Y Z C"]) -> None:
    """Write the four planes of each tile to `result`."""
    first, one, two, three, four, last = parts
    even, odd = torch.add(one, two), torch.add(three, four)
    torch.add(first, even, out=result[:, 0]).add_(odd)
    torch.add(even, odd, alpha=4, out=result[:, 2])
    torch.sub(one, two, out=even)
    torch.sub(three, four, out=odd)
    torch.add(even, odd, alpha=2, out=result[:, 1])
    torch.add(last, odd, alpha=8, out=result[:, 3]).add_(even)
