"""Base class of CNNs: a stem, four stages, and the simplest form of masking for convolutions.

Notation: B views, X Y Z sides of a view in voxels, x y z sides of its grid of patch tokens.
As in SimMIM (Xie et al., CVPR 2022), the masked voxels themselves are replaced, because the first convolution of a CNN mixes
neighbours before there are any tokens. The loss is computed on the masked voxels, as for all backbones.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dagman.model.backbone import Backbone, MaskFill

MEAN = 0.45
"""Intensity of masked voxels, which a Swin standardises to 0."""


class ConvolutionalStages(Backbone):
    """A stem followed by stages whose maps have strides 4, 8, 16 and 32.

    `mask_fill` is what replaces masked voxels: the mean intensity ("zero", its standardised value), or a learned one ("token").
    """

    def __init__(self, stem: nn.Module, stages: nn.ModuleList, widths: tuple[int, ...], mask_fill: MaskFill) -> None:
        super().__init__()
        self.widths = widths
        self.mask_fill = mask_fill
        self.mask_token = nn.Parameter(torch.full((1,), MEAN)) if mask_fill == "token" else None
        self.stem, self.stages = stem, stages

    def forward(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Compute feature maps; see `Backbone.forward`. `drop` has no effect, as CNNs have no stochastic depth."""
        if hidden is not None:
            view = self._mask(view, hidden)
        cpu, maps = view.device.type == "cpu", []
        # fp32 on the CPU: torch 2.13's bf16 weight gradients of 3D convolutions are sometimes garbage there (1e19 and more).
        with torch.autocast("cpu", enabled=False) if cpu else nullcontext():
            x = self.stem(view.float() if cpu else view)
            for stage in self.stages[:stages]:
                x = stage(x)
                maps.append(x)
        return maps

    def layers(self) -> list[list[nn.Parameter]]:
        """List parameters of the stem (with the mask token), then of each residual block."""
        blocks = [block for stage in self.stages for block in cast(nn.Sequential, stage)]
        learned = [] if self.mask_token is None else [self.mask_token]
        return [[*self.stem.parameters(), *learned], *(list(block.parameters()) for block in blocks)]

    def _mask(self, view: Tensor, hidden: Tensor) -> Tensor:
        for axis in (1, 2, 3):
            hidden = hidden.repeat_interleave(2, dim=axis)
        X, Y, Z = view.shape[2:]
        if any(not 0 <= side - own < 2 for side, own in zip(hidden.shape[1:], (X, Y, Z), strict=True)):
            raise ValueError(f"hidden covers {tuple(hidden.shape[1:])} voxels, the view has {(X, Y, Z)}")
        learned = self.mask_token if self.mask_fill == "token" else None
        fill = view.new_full((), MEAN) if learned is None else learned.to(view.dtype)
        return torch.where(hidden[:, None, :X, :Y, :Z], fill, view)
