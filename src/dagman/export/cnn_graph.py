"""CNN backbones as modules that can be traced with dynamic sizes (torch.export, ONNX).

They run the same layers as the backbones. Padding to a multiple and cropping the maps use index arithmetic with a new symbol for
each size, as in `swin_graph`; expressions with remainders would otherwise grow from stage to stage until they cannot be simplified.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from dagman.export.swin_graph import Sides, count_units, pad_sides
from dagman.model.foreign import ConvolutionalStages, ResidualEncoderStages, SegResNetStages
from dagman.model.foreign.cnn import MEAN
from dagman.model.foreign.residual_encoder import DEEPEST, STD


class ConvolutionalGraph(nn.Module):
    """Map views in HU (B 1 X Y Z, float32, at the encoder's spacing, in RAS+ order) to feature maps x1 to x4; any size.

    For nnU-Net's residual encoder, at least one side must be longer than 32, because x4 is normalised over its voxels.
    """

    def __init__(self, encoder: ConvolutionalStages, low: float, high: float) -> None:
        super().__init__()
        self.encoder = _free_norms(copy.deepcopy(encoder))
        self.low, self.high = low, high

    def forward(self, hu: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps in float32."""
        encoder, sides = self.encoder, list(hu.shape[2:])
        x = ((hu - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        stem, padded = encoder.stem, isinstance(encoder, ResidualEncoderStages)
        if padded:
            x = (pad_sides(x, [count_units(side, DEEPEST) for side in sides], DEEPEST) - MEAN) / STD
            # The first layer of this stem pads and standardises, which is already done above.
            stem = cast(nn.Sequential, encoder.stem)[1:]
        x, maps = stem(x), []
        for stage, stride in zip(encoder.stages, encoder.strides, strict=True):
            x = stage(x)
            maps.append(_cut(x, sides, stride) if padded else x)
        return tuple(maps)


class SegResNetGraph(nn.Module):
    """Like `ConvolutionalGraph`, for a SegResNet, which reads views in SPL order."""

    def __init__(self, encoder: SegResNetStages, low: float, high: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.low, self.high = low, high

    def forward(self, hu: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps in float32, in RAS+ order."""
        encoder, sides = self.encoder, list(hu.shape[2:])
        deepest = encoder.strides[-1]
        view = ((hu - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        view = pad_sides(view, [count_units(side, deepest) for side in sides], deepest)
        x, maps = encoder.net.conv_init(view.transpose(2, 4).flip(3, 4)), []
        for number, level in enumerate(encoder.net.layers):
            x = level["blocks"](x)
            if number:
                maps.append(_cut(x.flip(3, 4).transpose(2, 4), sides, encoder.strides[number - 1]))
            x = level["downsample"](x)
        return tuple(maps)


class _ChannelNorm(nn.Module):
    """Instance norm that does not check the number of voxels, which is unknown during tracing.

    Means are computed axis by axis: onnxruntime 1.32 sums a whole map at once, and loses the third digit with 800,000 voxels.
    """

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        x = x - _average(x)
        x = x * (_average(x.square()) + self.eps).rsqrt()
        return x * self.weight[:, None, None, None] + self.bias[:, None, None, None]


def _average(x: Tensor) -> Tensor:
    return x.mean(dim=4, keepdim=True).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def _free_norms(module: Any) -> Any:
    """Replace every instance norm of a module by `_ChannelNorm`, in place."""
    for name, child in module.named_children():
        setattr(module, name, _ChannelNorm(child) if isinstance(child, nn.InstanceNorm3d) else _free_norms(child))
    return module


def _cut(x: Tensor, sides: Sides, stride: int) -> Tensor:
    for axis, side in enumerate(sides, start=2):
        number: Any = count_units(side, stride)
        x = x.index_select(axis, torch.arange(number, device=x.device))
    return x
