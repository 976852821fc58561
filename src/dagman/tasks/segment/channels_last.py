"""Faster decoder layers in float32 on CPUs, with channels last in memory; equal to torch's layers up to rounding.

torch uses oneDNN for 3D convolutions, which reorders channels-first maps on every call and has slow gradients for few channels
(docs/decisions/0050).

Notation: B views, C and c channels, X Y Z sides of a map, R rows, n numbers per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dagman.model.linear import apply_linear
from dagman.tasks.segment.winograd import convolve_by_planes, suits_winograd

_LANES = 16
"""Number of float32 values in an AVX-512 vector, which oneDNN fills with the channels of a voxel."""
_ROW = 256
"""Maximum length of a row, which holds several voxels so that sums over rows use full vectors even with few channels."""
_ROWS_AT_ONCE = 512
"""Number of rows to which several operations are applied in sequence, so that they stay in the cache."""


def takes_channels_last(x: Tensor) -> bool:
    """Whether these layers apply to a map: float32 on a CPU, and not while a graph is traced, which needs torch's own layers."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def arrange_last(x: Float[Tensor, "B C X Y Z"]) -> Float[Tensor, "B C X Y Z"]:
    """Return the map with channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def convolve(
    x: Float[Tensor, "B c X Y Z"], layer: nn.Conv3d, norm: nn.InstanceNorm3d, slope: float, shortcut: Tensor | None = None
) -> Float[Tensor, "B C X Y Z"]:
    """Apply a padded 3^3 convolution and its instance norm, add a shortcut (B C X Y Z) if given, and apply a leaky ReLU."""
    values = arrange_last(x), layer.weight, norm.weight, norm.bias, None if shortcut is None else arrange_last(shortcut)
    if not torch.is_grad_enabled():
        return _convolve_and_normalise(*values, norm.eps, slope)[0]
    result: Tensor = _Convolution.apply(*values, norm.eps, slope)
    return result


def project(x: Float[Tensor, "B c X Y Z"], layer: nn.Conv3d) -> Float[Tensor, "B C X Y Z"]:
    """Apply a 1^3 convolution, as a linear layer over voxels."""
    return apply_linear(_list_voxels(x), layer.weight.flatten(1), layer.bias).permute(0, 4, 1, 2, 3)


def project_to_channels_first(x: Float[Tensor, "B c X Y Z"], layer: nn.Conv3d) -> Float[Tensor, "B C X Y Z"]:
    """Like `project`, but with channels first in memory, as a softmax over channels needs."""
    voxels = _list_voxels(x).flatten(1, 3).transpose(1, 2)
    weight, bias = layer.weight.flatten(1).expand(len(x), -1, -1), layer.bias
    assert bias is not None
    return torch.baddbmm(bias[:, None], weight, voxels).unflatten(2, x.shape[2:])


@cache
def fills_vectors() -> bool:
    """Whether the CPU has AVX-512; two voxels are then convolved at once if channels fill half a vector, in 2/3 of the time."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


class _Convolution(torch.autograd.Function):
    """Autograd function of `convolve`. The gradient of the map is a convolution with flipped weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, gain: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, slope: float
    ) -> Tensor:
        result, normed, scale = _convolve_and_normalise(x, weight, gain, bias, shortcut, eps, slope, keep=True)
        ctx.save_for_backward(x, weight, gain, result, normed, scale)
        ctx.slope = slope
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gain, result, normed, scale = ctx.saved_tensors
        inputs, results, channels = _cut_rows(arrange_last(gradients[0])), _cut_rows(result), len(weight)
        # Gradient of the activation's input, which is also that of the shortcut.
        change = torch.empty_like(normed)
        sums, products = (normed.new_zeros(len(normed), 1, normed.shape[2]) for _ in range(2))
        for rows in _split_rows(normed):
            one = change[rows]
            torch.ops.aten.leaky_relu_backward.grad_input(inputs[rows], results[rows], ctx.slope, True, grad_input=one)
            sums[rows[0]] += one.sum(1, keepdim=True)
            products[rows[0]] += (one * normed[rows]).sum(1, keepdim=True)
        total, product = _sum_row(sums, channels), _sum_row(products, channels)
        voxels = normed.shape[1] * normed.shape[2] // channels
        factor = scale * gain
        first, second, third = (_spread(value, normed) for value in (factor, factor * total / -voxels, factor * product / -voxels))
        inner = torch.empty_like(normed) if ctx.needs_input_grad[4] else change
        for rows in _split_rows(normed):
            part = rows[0]
            torch.addcmul(second[part], change[rows], first[part], out=inner[rows]).addcmul_(normed[rows], third[part])
        gradient = _join_rows(inner, result)
        return (
            _convolve(gradient, weight.transpose(0, 1).flip(2, 3, 4)) if ctx.needs_input_grad[0] else None,
            _differentiate_weight(gradient, x, weight) if ctx.needs_input_grad[1] else None,
            product.sum(0),
            total.sum(0),
            _join_rows(change, result) if ctx.needs_input_grad[4] else None,
            None,
            None,
        )


def _convolve_and_normalise(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    eps: float,
    slope: float,
    *,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `convolve`; returns its result, the normalised map as rows (only valid with `keep`), and its scale, B C."""
    made = _convolve(x, weight)
    normed, channels = _cut_rows(made), len(weight)
    voxels = normed.shape[1] * normed.shape[2] // channels
    mean = _spread(_sum_row(normed.sum(1, keepdim=True), channels) / voxels, normed)
    squares = torch.zeros_like(mean)
    for rows in _split_rows(normed):
        # Centred first, because the difference of large squares would lose precision.
        one = normed[rows].sub_(mean[rows[0]])
        squares[rows[0]] += (one * one).sum(1, keepdim=True)
    scale = (_sum_row(squares, channels) / voxels + eps).rsqrt()
    result = torch.empty_like(normed) if keep else normed
    added = None if shortcut is None else _cut_rows(shortcut)
    factor, gains, biases = (_spread(value, normed) for value in (scale, gain[None], bias[None]))
    for rows in _split_rows(normed):
        one = torch.addcmul(biases[0], normed[rows].mul_(factor[rows[0]]), gains[0], out=result[rows])
        if added is not None:
            one += added[rows]
        F.leaky_relu_(one, slope)
    return _join_rows(result, made), normed, scale


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    if suits_winograd(x, len(weight)):
        return convolve_by_planes(arrange_last(x), weight)
    if not _pairs_voxels(len(weight), x.shape[4]):
        return arrange_last(F.conv3d(x, arrange_last(weight), padding=1))
    pairs = arrange_last(F.conv3d(x, _widen(weight), stride=(1, 1, 2), padding=1))
    return _list_voxels(pairs).reshape(len(x), *x.shape[2:], len(weight)).permute(0, 4, 1, 2, 3)


def _differentiate_weight(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Compute the gradient of a convolution's weight, from the gradient of its result and its input."""
    outputs, ones, stride = len(weight), [1, 1, 1], [1, 1, 1]
    paired = _pairs_voxels(outputs, x.shape[4])
    if paired:
        B, C, X, Y, Z = gradient.shape
        gradient = _list_voxels(gradient).reshape(B, X, Y, Z // 2, 2 * C).permute(0, 4, 1, 2, 3)
        weight, stride = _widen(weight), [1, 1, 2]
    backward = torch.ops.aten.convolution_backward
    like = arrange_last(weight)
    change: Tensor = backward(gradient, x, like, None, stride, ones, ones, False, [0, 0, 0], 1, [False, True, False])[1]
    return change[:outputs, ..., :3] + change[outputs:, ..., 1:] if paired else change


def _pairs_voxels(outputs: int, depth: int) -> bool:
    return fills_vectors() and 2 * outputs <= _LANES and depth % 2 == 0


def _widen(weight: Tensor) -> Tensor:
    """Widen weights to compute two neighbours along Z as one voxel with twice the channels, each from 3 of 4 input voxels."""
    outputs = len(weight)
    wide = weight.new_zeros(2 * outputs, weight.shape[1], 3, 3, 4)
    wide[:outputs, ..., :3], wide[outputs:, ..., 1:] = weight, weight
    return arrange_last(wide)


def _list_voxels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1)


def _cut_rows(x: Tensor) -> Float[Tensor, "B R n"]:
    """View a channels-last map as rows of several voxels, without a copy."""
    voxels, channels = x.shape[2:].numel(), x.shape[1]
    few = 1
    while voxels % (2 * few) == 0 and 2 * few * channels <= _ROW:
        few *= 2
    return _list_voxels(x).view(len(x), voxels // few, few * channels)


def _join_rows(rows: Tensor, like: Tensor) -> Tensor:
    B, C, X, Y, Z = like.shape
    return rows.view(B, X, Y, Z, C).permute(0, 4, 1, 2, 3)


def _split_rows(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of a few rows, one view after the other."""
    for view in range(len(rows)):
        for first in range(0, rows.shape[1], _ROWS_AT_ONCE):
            yield slice(view, view + 1), slice(first, first + _ROWS_AT_ONCE)


def _sum_row(sums: Float[Tensor, "B 1 n"], channels: int) -> Float[Tensor, "B C"]:
    return sums.view(len(sums), -1, channels).sum(1)


def _spread(values: Float[Tensor, "B C"], rows: Tensor) -> Float[Tensor, "B 1 n"]:
    """Repeat the channels' values along a row."""
    return values.repeat(1, rows.shape[2] // values.shape[1])[:, None]
