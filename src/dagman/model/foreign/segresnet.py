"""MONAI's SegResNet encoder as trained by CT-FM (extra `monai`), for comparison; it cannot be pretrained."""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from dagman.errors import MissingExtraError
from dagman.model.backbone import Backbone, BackboneKind, MaskFill, register_backbone
from dagman.model.swin import SwinShape

DEPTHS = (1, 2, 2, 4, 4)
"""Number of blocks of CT-FM's levels, at strides 1 to 16; the first level is part of the stem."""


class SegResNetStages(Backbone):
    """Levels 2 to 5 of a SegResNet encoder, at strides 2 to 16, applied in the orientation that CT-FM was trained on.

    Batch norms keep their statistics even in training mode, so that features do not depend on the batch.
    """

    def __init__(self, net: Any, shape: SwinShape) -> None:
        super().__init__()
        self.widths = shape.widths
        self.strides = (2, 4, 8, 16)
        self.net = net

    @property
    def load(self) -> int:
        """See `Backbone.load`: the stem computes all its channels at full resolution, unlike the patch tokens of a Swin."""
        return self.widths[0]

    def forward(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Compute feature maps; see `Backbone.forward`.

        Raises:
            ValueError: If `hidden` is given, as masks are not supported.
        """
        if hidden is not None:
            raise ValueError("a SegResNet does not support masks")
        grids = [[-(-side // stride) for side in view.shape[2:]] for stride in self.strides]
        padded = functional.pad(view, [n for side in reversed(view.shape[2:]) for n in (0, -side % self.strides[-1])])
        x, maps = self.net.conv_init(_turn(padded)), []
        for number, level in enumerate(self.net.layers):
            x = level["blocks"](x)
            if number:
                maps.append(_turn_back(x)[:, :, : grids[number - 1][0], : grids[number - 1][1], : grids[number - 1][2]])
            if len(maps) == (stages or len(self.strides)):
                break
            x = level["downsample"](x)
        return maps

    def layers(self) -> list[list[nn.Parameter]]:
        """List parameters by level, each with the convolution before it; the first includes the stem."""
        levels = [cast(nn.ModuleDict, level) for level in self.net.layers]
        leading = [self.net.conv_init, *(level["downsample"] for level in levels)]
        return [[*before.parameters(), *level["blocks"].parameters()] for before, level in zip(leading, levels, strict=False)]

    def train(self, mode: bool = True) -> SegResNetStages:
        """Set the mode of all modules except batch norms, which stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()
        return self


def _turn(x: Tensor) -> Tensor:
    """Reorient from RAS to SPL, CT-FM's `Orientation(axcodes="SPL")`."""
    return x.transpose(2, 4).flip(3, 4)


def _turn_back(x: Tensor) -> Tensor:
    return x.flip(3, 4).transpose(2, 4)


def build_segresnet(shape: SwinShape, variant: str, mask_fill: MaskFill) -> SegResNetStages:
    """Build a randomly initialised SegResNet encoder.

    Args:
        shape: `embed` is the number of channels at full resolution, `depths` the number of blocks of levels 2 to 5.
        variant: Not used.
        mask_fill: Not used.

    Raises:
        MissingExtraError: If MONAI is not installed.
    """
    try:
        from monai.networks.nets.segresnet_ds import SegResEncoder
    except ImportError:
        raise MissingExtraError("MONAI", "monai") from None
    return SegResNetStages(SegResEncoder(init_filters=shape.embed, blocks_down=(DEPTHS[0], *shape.depths)), shape)


register_backbone(
    "segresnet",
    BackboneKind(
        build=build_segresnet,
        no_masks="the statistics of its batch norms come from whole scans",
        variants=("8", "32"),
    ),
)
