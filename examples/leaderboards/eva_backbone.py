"""A dagman encoder as a 3D radiology backbone of kaiko-eva (0.4.5), for its segmentation leaderboards (BTCV, LiTS17, KiTS23, ...).

In eva's configuration, such as configs/vision/radiology/online/segmentation/btcv.yaml, set the encoder to

    encoder:
      class_path: eva_backbone.DagmanBackbone        # with examples/leaderboards on PYTHONPATH
      init_args:
        encoder: runs/first                          # or an encoder folder, hub:OWNER/NAME, scratch:SIZE

or to `ModelFromRegistry` with `model_name: radiology/dagman`, after a call of `register()`. Set the preprocessing to the encoder's
own: `python eva_backbone.py runs/first` prints `pixdim` of Spacing, SCALE_INTENSITY_MIN and _MAX, ROI_SIZE, and IN_FEATURES.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dagman

NAME = "radiology/dagman"


class DagmanBackbone(nn.Module):
    """Feature maps or a feature vector of eva's views B 1 T H W, with intensities in [0, 1] and sides that are multiples of 32.

    Args:
        encoder: Anything that `dagman.load` accepts.
        out_indices: How many of the six maps eva's SwinUNETR decoder reads, counted from the coarsest, which is the last. None: a
            vector of the means of x1 to x4. The two finest maps, at strides 1 and 2, are the image itself, because a dagman encoder
            has no map finer than stride 4.
    """

    def __init__(self, encoder: str, out_indices: int | None = None) -> None:
        super().__init__()
        loaded = dagman.load(encoder, device="cpu")
        # eva itself freezes or trains the encoder, and moves it to its device.
        self.backbone = loaded.network.encoder.requires_grad_(True)
        self.out_indices = out_indices

    def forward(self, tensor: Tensor) -> Tensor | list[Tensor]:
        """The vector B C, or the maps B C T H W, finest first."""
        image = to_ras(tensor).clamp(0, 1)
        maps = self.backbone(image)
        if self.out_indices is None:
            return torch.cat([features.mean(dim=(2, 3, 4)) for features in maps], dim=1)
        width = self.backbone.widths[0] // 2
        halved = nn.functional.avg_pool3d(image, 2, ceil_mode=True)
        fine = [one.expand(-1, width, -1, -1, -1) for one in (image, halved)]
        return [from_ras(features) for features in [*fine, *maps]][-self.out_indices :]


def to_ras(tensor: Tensor) -> Tensor:
    """Convert eva's axes (superior, posterior, left) to dagman's (right, anterior, superior)."""
    return tensor.transpose(2, 4).flip(2, 3)


def from_ras(tensor: Tensor) -> Tensor:
    """Convert dagman's axes to eva's."""
    return tensor.flip(2, 3).transpose(2, 4)


def describe_settings(encoder: str) -> dict[str, object]:
    """Values for eva's configuration, so that scans are preprocessed as in the training of the encoder."""
    config = dagman.load(encoder, device="cpu").config
    return {
        "pixdim": [config.spacing] * 3,
        "SCALE_INTENSITY_MIN": config.low,
        "SCALE_INTENSITY_MAX": config.high,
        "ROI_SIZE": [max(config.view, 96)] * 3,
        "IN_FEATURES": config.shape.embed,
    }


def register() -> None:
    """Add the backbone to eva's registry under its name, unless it is already there."""
    from eva.vision.models.networks.backbones.registry import backbone_registry

    if NAME not in backbone_registry.entries():
        backbone_registry.register(NAME)(DagmanBackbone)


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(describe_settings(sys.argv[1])))
