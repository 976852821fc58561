"""The plain ViT as a module that can be traced as one graph for views of any size (torch.export, ONNX).

Features equal those of `ViTEncoder` up to rounding. `ViTEncoder` uses the learned position embeddings without interpolation if the
grid is that of training. Here the grid is unknown during tracing, so they are always interpolated; linear interpolation to the same
grid does not change them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from dagman.export.swin_graph import cut_patches
from dagman.model.semantic_attention import GlobalBlock
from dagman.model.vit import ViTEncoder


class ViTGraph(nn.Module):
    """Map views in HU (B 1 X Y Z, float32, at the encoder's spacing, in RAS+ order) to feature maps x1 to x4; any size."""

    def __init__(self, encoder: ViTEncoder, low: float, high: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.low, self.high = low, high

    def forward(self, hu: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps in float32, all on the grid of tokens."""
        encoder = self.encoder
        view = ((hu - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        patches, sides = cut_patches(view, encoder.shape.patch, encoder.mean, encoder.std)
        positions: Tensor = encoder.positions
        for axis, number in enumerate(sides, start=1):
            positions = _interpolate_axis(positions, axis, number)
        tokens = encoder.patch_projection(patches) + positions.flatten(1).T
        z = torch.cat([tokens, encoder.cls.expand(hu.shape[0], 1, -1)], dim=1)
        maps = []
        for blocks in encoder.stages:
            for block in cast(nn.ModuleList, blocks):
                z = _run_block(cast(GlobalBlock, block), z)
            maps.append(z[:, :-1].transpose(1, 2).reshape(z.shape[0], z.shape[2], *sides))
        return tuple(maps)


def _run_block(block: GlobalBlock, z: Tensor) -> Tensor:
    """Compute `block(z)` without its chunking over tokens, whose number is unknown during tracing."""
    # A graph cannot select an attention backend. cuDNN is wrong only with masks and in gradients, neither of which occurs here.
    q, k, v = block.qkv(block.norm1(z)).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    attended = nn.functional.scaled_dot_product_attention(q, k, v)
    z = z + block.proj(attended.transpose(1, 2).flatten(2))
    return z + block.mlp.linear2(nn.functional.gelu(block.mlp.linear1(block.norm2(z))))


def _interpolate_axis(cells: Tensor, axis: int, number: Any) -> Tensor:
    """Interpolate linearly to `number` cells along an axis, where both grids cover the same length."""
    known = cells.shape[axis]
    centers = ((torch.arange(number) + 0.5) * known / number - 0.5).clamp(0, known - 1)
    below = centers.floor()
    share = (centers - below).reshape([-1 if dimension == axis else 1 for dimension in range(cells.ndim)])
    below = below.long()
    first, second = (cells.index_select(axis, index) for index in (below, (below + 1).clamp(max=known - 1)))
    return first + (second - first) * share
