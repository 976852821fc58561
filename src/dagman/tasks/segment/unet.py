"""A U-Net on an encoder (METHOD, Downstream, task 2): its decoder starts from scratch and is shaped like SwinUNETR's.

Letters: B views, C channels, K classes (background first), X Y Z sides of a view in voxels, multiples of 32.

```
stride    1        2        4      8      16     32
          stem --> halved   x1     x2     x3     x4       stem: convolution blocks on the view itself
          |        |        |      |      |      |
logits <- join  <- join  <- join <- join <- join <-       join: twice as fine, beside the skip, one residual block
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
"""Sides of a view are multiples of it."""
_LEAK = 0.01


class SegmentationNetwork(nn.Module):
    """Views to logits of K classes at full resolution, from the encoder's feature maps at strides 4, 8, 16, 32 (see `Neck`)."""

    def __init__(self, encoder: Backbone, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.encoder = encoder
        self.decoder = Decoder(encoder.widths, classes, encoder.strides)

    def forward(self, view: Float[Tensor, "B 1 X Y Z"]) -> Float[Tensor, "B K X Y Z"]:
        """Logits of views with intensities in [0, 1]; raises ValueError for sides that are no multiples of 32."""
        if any(side % STRIDE for side in view.shape[2:]):
            raise ValueError(f"a view has sides of multiples of {STRIDE}, not {tuple(view.shape[2:])}")
        features = self.encoder(view)
        kind = view.device.type
        # On the CPU convolutions are fp32: torch 2.13's bf16 weight gradient of a 3D one is garbage now and then (1e19 and more).
        with torch.autocast(kind, enabled=kind != "cpu" and torch.is_autocast_enabled(kind)):
            return self.decoder(view, normalise_features([x.float() for x in features]))


class Decoder(nn.Module):
    """A view and its feature maps to logits; it works with half of each map's channels, a sixth of x1's at full resolution.

    `window` (low, high) is the part of [0, 1] in which the structures' intensities lie: the stem is given the view once more,
    stretched over it. Liver and tumour differ by 2 % of the range that shows lungs and bones too.
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
        """Start from the classes' shares (K) of all voxels, so that before any step the logits say what is likely anywhere."""
        self.classify.bias = nn.Parameter(torch.from_numpy(np.log(shares)).to(self.classify.weight))

    def forward(self, view: Float[Tensor, "B 1 X Y Z"], features: list[Float[Tensor, "B _ _ _ _"]]) -> Float[Tensor, "B K X Y Z"]:
        """Logits; features are x1..x4, each token normalised over its channels."""
        low, high = self.window
        quick = takes_channels_last(view)
        views = torch.cat([view, ((view - low) / (high - low)).clamp(0.0, 1.0)], dim=1)
        fine = self.stem(arrange_last(views) if quick else views)
        halved = self.halved(self.halve(fine))
        *skips, x = features if self.neck is None else self.neck(features)
        skips = [fine, halved, *skips]
        # The finest skip is the largest map that there is: only the list may hold it, so that it goes when it is joined.
        del fine, halved
        for join in reversed(self.joins):
            x = join(x, skips)
        return project_to_channels_first(x, self.classify) if quick else self.classify(x)


class Neck(nn.Module):
    """Maps of a plain transformer, all of one grid, as those of a pyramid at strides 4, 8, 16, 32 (as UNETR's and ViTDet's).

    A finer map has fewer channels: the deepest keeps them, and each above it has half as many.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = tuple(max(16, width >> (len(channels) - 1 - number)) for number, width in enumerate(channels))
        self.steps = nn.ModuleList(
            _change_stride(width, wanted, stride, target)
            for width, wanted, stride, target in zip(channels, self.widths, strides, STRIDES, strict=True)
        )

    def forward(self, features: list[Float[Tensor, "B _ _ _ _"]]) -> list[Float[Tensor, "B _ _ _ _"]]:
        """x1..x4 at strides 4, 8, 16, 32."""
        return [step(x) for step, x in zip(self.steps, features, strict=True)]


class Join(nn.Module):
    """One step up: what comes from below at twice the resolution, beside the skip, through a residual block."""

    def __init__(self, coarse: int, skip: int, width: int) -> None:
        super().__init__()
        self.rise = nn.ConvTranspose3d(coarse, width, kernel_size=2, stride=2)
        self.narrow = nn.Conv3d(skip, width, kernel_size=1) if skip != width else nn.Identity()
        self.block = ResidualBlock(2 * width, width)

    def forward(self, x: Float[Tensor, "B c x y z"], skips: list[Tensor]) -> Float[Tensor, "B W X Y Z"]:
        """Takes the last of the skips (B C X Y Z), whose grid is twice as fine as x's, off the list."""
        skip = skips.pop()
        narrow = (
            project(skip, self.narrow) if isinstance(self.narrow, nn.Conv3d) and takes_channels_last(skip) else self.narrow(skip)
        )
        return self.block(torch.cat([self.rise(x), narrow], dim=1))


class ResidualBlock(nn.Module):
    """Two 3^3 convolutions, each with instance norm, beside a linear shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm3d(outputs, affine=True)
        self.second = nn.Conv3d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm3d(outputs, affine=True)
        # No norm here: HU are absolute, and this is the way on which they stay so.
        self.shortcut = nn.Conv3d(inputs, outputs, kernel_size=1)
        self.activate = nn.LeakyReLU(_LEAK)

    def forward(self, x: Float[Tensor, "B c X Y Z"]) -> Float[Tensor, "B C X Y Z"]:
        """The same grid with other channels."""
        if takes_channels_last(x):
            y = convolve(x, self.first, self.norm1, _LEAK)
            return convolve(y, self.second, self.norm2, _LEAK, project(x, self.shortcut))
        y = self.activate(self.norm1(self.first(x)))
        return self.activate(self.norm2(self.second(y)) + self.shortcut(x))


def _change_stride(inputs: int, outputs: int, stride: int, wanted: int) -> nn.Module:
    """One convolution, transposed where the map gets finer, whose kernel is its stride."""
    if wanted <= stride:
        return nn.ConvTranspose3d(inputs, outputs, kernel_size=stride // wanted, stride=stride // wanted)
    return nn.Conv3d(inputs, outputs, kernel_size=wanted // stride, stride=wanted // stride)
