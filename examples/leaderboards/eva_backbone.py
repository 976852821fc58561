"""A dagman encoder as a 3D radiology backbone of kaiko-eva (0.4.5), for its segmentation leaderboards (BTCV, LiTS17, KiTS23, ...).

In eva's own configuration, such as configs/vision/radiology/online/segmentation/btcv.yaml, the encoder becomes

    encoder:
      class_path: eva_backbone.DagmanBackbone        # with examples/leaderboards on PYTHONPATH
      init_args:
        encoder: runs/first                          # or an encoder folder, hub:OWNER/NAME, scratch:SIZE

(or `ModelFromRegistry` with `model_name: radiology/dagman`, once `register()` was called), and the preprocessing becomes the
encoder's own: `python eva_backbone.py runs/first` prints `pixdim` of Spacing, SCALE_INTENSITY_MIN and _MAX, ROI_SIZE, IN_FEATURES.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dagman

NAME = "radiology/dagman"


class DagmanBackbone(nn.Module):
    """Views B 1 T H W of eva, intensities in [0, 1], sides multiples of 32, to the maps or the vector that it asks for.

    Args:
        encoder: What `dagman.load` takes.
        out_indices: How many of the six maps its SwinUNETR decoder reads, the coarsest last; None: a vector, the means of x1 to x4.
            The two finest, at 1 and 2 voxels, are the image itself: a dagman encoder has no map finer than 4 voxels.
    """

    def __init__(self, encoder: str, out_indices: int | None = None) -> None:
        super().__init__()
        loaded = dagman.load(encoder, device="cpu")
        # eva freezes it, or trains it, and moves it to its device.
        self.backbone = loaded.network.encoder.requires_grad_(True)
        self.out_indices = out_indices

    def forward(self, tensor: Tensor) -> Tensor | list[Tensor]:
        """The vector B C, or maps B C T H W, the finest first."""
        image = to_ras(tensor).clamp(0, 1)
        maps = self.backbone(image)
        if self.out_indices is None:
            return torch.cat([features.mean(dim=(2, 3, 4)) for features in maps], dim=1)
        width = self.backbone.widths[0] // 2
        halved = nn.functional.avg_pool3d(image, 2, ceil_mode=True)
        fine = [one.expand(-1, width, -1, -1, -1) for one in (image, halved)]
        return [from_ras(features) for features in [*fine, *maps]][-self.out_indices :]


def to_ras(tensor: Tensor) -> Tensor:
    """From eva's axes, which run to superior, posterior and left, to dagman's: right, anterior and superior."""
    return tensor.transpose(2, 4).flip(2, 3)


def from_ras(tensor: Tensor) -> Tensor:
    """From dagman's axes to eva's."""
    return tensor.flip(2, 3).transpose(2, 4)


def describe_settings(encoder: str) -> dict[str, object]:
    """What eva's configuration has to say so that scans are prepared as the encoder was trained."""
    config = dagman.load(encoder, device="cpu").config
    return {
        "pixdim": [config.spacing] * 3,
        "SCALE_INTENSITY_MIN": config.low,
        "SCALE_INTENSITY_MAX": config.high,
        "ROI_SIZE": [max(config.view, 96)] * 3,
        "IN_FEATURES": config.shape.embed,
    }


def register() -> None:
    """Add the backbone to eva's registry by its name; nothing where it is there already."""
    from eva.vision.models.networks.backbones.registry import backbone_registry

    if NAME not in backbone_registry.entries():
        backbone_registry.register(NAME)(DagmanBackbone)


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(describe_settings(sys.argv[1])))
