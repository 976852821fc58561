"""MONAI's 3D ResNets as backbones (extra `monai`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from dagman.errors import MissingExtraError
from dagman.model.backbone import BackboneKind, MaskFill, register_backbone
from dagman.model.foreign.cnn import ConvolutionalStages
from dagman.model.swin import SwinShape

RESNETS = {"10": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3)}
"""Number of blocks of each stage; those of 50 are bottlenecks."""
PLANES = (64, 128, 256, 512)
GROUPS = 8
"""Number of groups of each group norm."""


class ResNetStages(ConvolutionalStages):
    """MONAI's 3D ResNet; intensities are not standardised."""

    def __init__(self, resnet: Any, shape: SwinShape, mask_fill: MaskFill = "zero") -> None:
        stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act, resnet.maxpool)
        stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        super().__init__(stem, stages, shape.widths, mask_fill)


def build_resnet(shape: SwinShape, size: str, mask_fill: MaskFill) -> ResNetStages:
    """Build a randomly initialised ResNet of 10, 18, 34 or 50 layers, with group norm.

    Raises:
        MissingExtraError: If MONAI is not installed.
    """
    try:
        from monai.networks.nets.resnet import ResNet
    except ImportError:
        raise MissingExtraError("MONAI", "monai") from None
    resnet = ResNet(
        "bottleneck" if size == "50" else "basic",
        list(RESNETS[size]),
        list(PLANES),
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
    )
    _use_group_norm(resnet)
    return ResNetStages(resnet, shape, mask_fill)


def _use_group_norm(module: nn.Module) -> None:
    """Replace batch norms, whose statistics would depend on the size of micro-batches; MONAI's `norm` affects only the first."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))
        else:
            _use_group_norm(child)


def _shape_resnet(size: str) -> SwinShape:
    return SwinShape(embed=128 if size == "50" else 32, depths=RESNETS[size], heads=(1, 1, 1, 1))


register_backbone(
    "resnet3d",
    BackboneKind(
        build=build_resnet,
        mask_fills=("zero", "token"),
        variants=tuple(RESNETS),
        baselines={size: _shape_resnet(size) for size in RESNETS},
    ),
)
