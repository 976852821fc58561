"""A U-Net on an encoder (METHOD, Downstream, task 2), with a randomly initialised decoder similar to SwinUNETR's.

Notation: B views, C channels, K classes (background first), X Y Z sides of a view in voxels, multiples of 32.

```
stride    1        2        4      8      16     32
          stem --> halved   x1     x2     x3     x4       stem: convolution blocks on the view itself
          |        |        |      |      |      |
logits <- join  <- join  <- join <- join <- join <-       join: upsample by 2, concatenate the skip, one residual block
```
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from dagman.model import Backbone, normalise_features
from dagman.model.backbone import STRIDES
from dagman.tasks.segment.channels_last import (
    arrange_last,
    convolve,
    project,
    project_to_channels_first,
    takes_channels_last,
)

STRIDE = 32
"""Sides of a view are multiples of this."""
_LEAK = 0.01


class SegmentationNetwork(nn.Module):
    """Segmentation network: an encoder with feature maps at strides 4, 8, 16, 32 (see `Neck`), and a decoder to full resolution."""

    def __init__(self, encoder: Backbone, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.encoder = encoder
        self.decoder = Decoder(encoder.widths, classes, encoder.strides)

    def forward(self, view: Float[Tensor, "B 1 X Y Z"]) -> Float[Tensor, "B K X Y Z"]:
        """Compute logits of views with intensities in [0, 1].

        Raises:
            ValueError: A side is not a multiple of 32.
        """
        if any(side % STRIDE for side in view.shape[2:]):
            raise ValueError(f"a view has sides of multiples of {STRIDE}, not {tuple(view.shape[2:])}")
        features = self.encoder(view)
        kind = view.device.type
        # CPU convolutions are fp32: in torch 2.13, bf16 weight gradients of 3D convolutions are sometimes garbage (1e19 and more).
        with torch.autocast(kind, enabled=kind != "cpu" and torch.is_autocast_enabled(kind)):
            return self.decoder(view, normalise_features([x.float() for x in features]))


class Decoder(nn.Module):
    """Decoder from a view and its feature maps to logits, with half of each map's channels, and a sixth of x1's at the top.

    `window` (low, high) is the range of the structures' intensities within [0, 1]; the stem gets the view a second time with this
    range stretched, because liver and tumour differ by only 2 % of a range that includes lungs and bones.
    """

    window: Tensor

    def __init__(self, channels: tuple[int, ...], classes: int, strides: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        self.register_buffer("window", torch.tensor([0.0, 1.0]))
        self.neck = Neck(channels, strides) if strides != STRIDES else None
        channels = channels if self.neck is None else self.neck.widths
        embed = channels[0] // 2
        fine, half = max(8, embed // 3), max(8, 2 * embed // 3)
        self.stem = ResidualBlock(2, fine)
        self.halve = nn.Conv3d(fine, half, kernel_size=2, stride=2)
        self.halved = ResidualBlock(half, half)
        *skips, deepest = channels
        widths = [fine, half, *(width // 2 for width in skips)]
        self.joins = nn.ModuleList(
            Join(coarse, skip, width)
            for coarse, skip, width in zip([*widths[1:], deepest], [fine, half, *skips], widths, strict=True)
        )
        self.classify = nn.Conv3d(fine, classes, kernel_size=1)

    @torch.no_grad()
    def set_shares(self, shares: NDArray[np.float64]) -> None:
        """Initialise the bias from the classes' shares (K) of all voxels, so that initial predictions match these shares."""
        self.classify.bias = nn.Parameter(torch.from_numpy(np.log(shares)).to(self.classify.weight))

    def forward(self, view: Float[Tensor, "B 1 X Y Z"], features: list[Float[Tensor, "B _ _ _ _"]]) -> Float[Tensor, "B K X Y Z"]:
        """Compute logits; features are x1..x4, each token normalised over its channels."""
        low, high = self.window
        quick = takes_channels_last(view)
        views = torch.cat([view, ((view - low) / (high - low)).clamp(0.0, 1.0)], dim=1)
        fine = self.stem(arrange_last(views) if quick else views)
        halved = self.halved(self.halve(fine))
        *skips, x = features if self.neck is None else self.neck(features)
        skips = [fine, halved, *skips]
        # The finest skip is the largest map: only the list may refer to it, so that it is freed once it is joined.
        del fine, halved
        for join in reversed(self.joins):
            x = join(x, skips)
        return project_to_channels_first(x, self.classify) if quick else self.classify(x)


class Neck(nn.Module):
    """Converts the maps of a plain transformer, all on one grid, to a pyramid at strides 4, 8, 16, 32 (as in UNETR and ViTDet).

    The deepest map keeps its channels, and each finer map has half as many.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = tuple(max(16, width >> (len(channels) - 1 - number)) for number, width in enumerate(channels))
        self.steps = nn.ModuleList(
            _change_stride(width, wanted, stride, target)
            for width, wanted, stride, target in zip(channels, self.widths, strides, STRIDES, strict=True)
        )

    def forward(self, features: list[Float[Tensor, "B _ _ _ _"]]) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Return x1..x4 at strides 4, 8, 16, 32."""
        return [step(x) for step, x in zip(self.steps, features, strict=True)]


class Join(nn.Module):
    """One level up: upsample by 2, concatenate the skip, and apply a residual block."""

    def __init__(self, coarse: int, skip: int, width: int) -> None:
        super().__init__()
        self.rise = nn.ConvTranspose3d(coarse, width, kernel_size=2, stride=2)
        self.narrow = nn.Conv3d(skip, width, kernel_size=1) if skip != width else nn.Identity()
        self.block = ResidualBlock(2 * width, width)

    def forward(self, x: Float[Tensor, "B c x y z"], skips: list[Tensor]) -> Float[Tensor, "B W X Y Z"]:
        """Join x with the last of the skips (B C X Y Z), whose grid is twice as fine, and remove this skip from the list."""
        skip = skips.pop()
        narrow = (
            project(skip, self.narrow) if isinstance(self.narrow, nn.Conv3d) and takes_channels_last(skip) else self.narrow(skip)
        )
        return self.block(torch.cat([self.rise(x), narrow], dim=1))


class ResidualBlock(nn.Module):
    """Residual block: two 3^3 convolutions, each with instance norm, and a linear shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm3d(outputs, affine=True)
        self.second = nn.Conv3d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm3d(outputs, affine=True)
        # Not normalised, so that absolute HU are preserved on this path.
        self.shortcut = nn.Conv3d(inputs, outputs, kernel_size=1)
        self.activate = nn.LeakyReLU(_LEAK)

    def forward(self, x: Float[Tensor, "B c X Y Z"]) -> Float[Tensor, "B C X Y Z"]:
        """Apply the block; the grid is unchanged."""
        if takes_channels_last(x):
            y = convolve(x, self.first, self.norm1, _LEAK)
            return convolve(y, self.second, self.norm2, _LEAK, project(x, self.shortcut))
        y = self.activate(self.norm1(self.first(x)))
        return self.activate(self.norm2(self.second(y)) + self.shortcut(x))


def _change_stride(inputs: int, outputs: int, stride: int, wanted: int) -> nn.Module:
    """Make a convolution, or a transposed one if the map gets finer, whose kernel equals its stride."""
    if wanted <= stride:
        return nn.ConvTranspose3d(inputs, outputs, kernel_size=stride // wanted, stride=stride // wanted)
    return nn.Conv3d(inputs, outputs, kernel_size=wanted // stride, stride=wanted // stride)
