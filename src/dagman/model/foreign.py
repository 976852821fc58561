"""Backbones of MONAI: its 3D ResNets and its Swin, as feature maps at strides 4, 8, 16, 32 (extra `monai`).

The one file of `model` that needs more than torch, and only when such a backbone is built.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dagman.errors import MissingExtraError
from dagman.model.backbone import Backbone, BackboneKind, MaskFill, register_backbone
from dagman.model.swin import SwinShape

RESNETS = {"10": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3)}
"""Blocks of each stage; 50 has bottlenecks."""
MERGINGS = ("mergingv2", "merging")
"""MONAI's two orders of a patch merging: the second leaves some neighbours out, and weights trained with it need it."""


class ResNetStages(Backbone):
    """A 3D ResNet of MONAI."""

    def __init__(self, resnet: Any, shape: SwinShape) -> None:
        super().__init__()
        self.widths = shape.widths
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act, resnet.maxpool)
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])

    def forward(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Feature maps; raises ValueError for masks, which it does not take."""
        if hidden is not None:
            raise ValueError("a ResNet takes no masks")
        x, maps = self.stem(view), []
        for stage in self.stages[:stages]:
            x = stage(x)
            maps.append(x)
        return maps

    def layers(self) -> list[list[nn.Parameter]]:
        """The stem, then each residual block."""
        blocks = [block for stage in self.stages for block in cast(nn.Sequential, stage)]
        return [list(layer.parameters()) for layer in (self.stem, *blocks)]


class MonaiSwin(Backbone):
    """MONAI's SwinTransformer, each map after its stage's merging; a masked patch token becomes zero after the projection."""

    def __init__(self, swin: Any, shape: SwinShape) -> None:
        super().__init__()
        self.widths = shape.widths
        self.swin = swin

    def forward(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Feature maps; it has no stochastic depth, so that `drop` has no rows."""
        swin = self.swin
        x = swin.patch_embed(view)
        if hidden is not None:
            x = torch.where(hidden[:, None], x.new_zeros(()), x)
        maps = []
        for stage in (swin.layers1, swin.layers2, swin.layers3, swin.layers4)[:stages]:
            x = stage[0](x.contiguous())
            maps.append(x)
        return maps

    def layers(self) -> list[list[nn.Parameter]]:
        """The patch projection, then each block and each merging."""
        parts = [self.swin.patch_embed]
        for stage in (self.swin.layers1, self.swin.layers2, self.swin.layers3, self.swin.layers4):
            parts += [*stage[0].blocks, stage[0].downsample]
        return [list(part.parameters()) for part in parts]


def build_resnet(shape: SwinShape, size: str, mask_fill: MaskFill) -> ResNetStages:
    """A fresh ResNet of 10, 18, 34 or 50 layers, with group norm."""
    try:
        from monai.networks.nets.resnet import ResNet
    except ImportError:
        raise MissingExtraError("MONAI", "monai") from None
    resnet = ResNet(
        "bottleneck" if size == "50" else "basic",
        list(RESNETS[size]),
        [64, 128, 256, 512],
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
    )
    _use_group_norm(resnet)
    return ResNetStages(resnet, shape)


def build_monai_swin(shape: SwinShape, merging: str, mask_fill: MaskFill = "zero") -> MonaiSwin:
    """A fresh Swin of MONAI; `merging` is one of `MERGINGS`, the first by default."""
    try:
        from monai.networks.nets.swin_unetr import SwinTransformer
    except ImportError:
        raise MissingExtraError("MONAI", "monai") from None
    swin = SwinTransformer(
        in_chans=1,
        embed_dim=shape.embed,
        window_size=(shape.window,) * 3,
        patch_size=(2, 2, 2),
        depths=shape.depths,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        downsample=merging or MERGINGS[0],
    )
    return MonaiSwin(swin, shape)


def _use_group_norm(module: nn.Module) -> None:
    """Batch statistics would depend on how a batch is cut to fit the memory; MONAI's `norm` reaches the first layer alone."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        else:
            _use_group_norm(child)


def _shape_resnet(size: str) -> SwinShape:
    return SwinShape(embed=128 if size == "50" else 32, depths=RESNETS[size], heads=(1, 1, 1, 1))


register_backbone(
    "resnet3d",
    BackboneKind(
        build=build_resnet,
        no_masks="its first convolution mixes masked and visible voxels before there are tokens",
        variants=tuple(RESNETS),
        baselines={size: _shape_resnet(size) for size in RESNETS},
    ),
)
register_backbone("monai-swin", BackboneKind(build=build_monai_swin, mask_fills=("zero",), variants=("", *MERGINGS)))
