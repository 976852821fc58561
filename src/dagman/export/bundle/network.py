"""The network of a MONAI bundle and the loop that applies it; copied to `scripts/dagman_network.py` of an export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dagman.encoder.tiling import FLOOR_HALF, weight_tile
from dagman.model.backbone import build_backbone, find_backbone
from dagman.model.swin import SwinShape
from dagman.tasks.segment.unet import SegmentationNetwork


class ProbabilityNetwork(SegmentationNetwork):
    """A segmentation network that returns class probabilities, which a sliding window can average; intensities in [0, 1]."""

    def forward(self, view: Tensor) -> Tensor:
        """Compute class probabilities, background first."""
        return super().forward(torch.as_tensor(view)).softmax(dim=1)


def load_network(folder: str) -> ProbabilityNetwork:
    """Build the network that `network.json` describes, and load the weights of `model.safetensors` strictly."""
    values = json.loads((Path(folder) / "network.json").read_text(encoding="utf-8"))
    shape: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values["shape"].items()}
    kind = find_backbone(values["backbone"])
    network = ProbabilityNetwork(build_backbone(values["backbone"], (kind.shape or SwinShape)(**shape)), values["classes"])
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval()


def label_scans(batches: Iterable[dict[str, Any]], inferer: Any, network: ProbabilityNetwork, finish: Callable[[Any], Any]) -> int:
    """Apply the network to batches of one `image` each, and return the number of scans.

    Args:
        batches: Batches, such as those of a data loader.
        inferer: MONAI's sliding window inferer.
        network: The network.
        finish: Called with each item after its prediction was added under `pred`.
    """
    from monai.data.utils import decollate_batch

    count = 0
    device = next(network.parameters()).device
    # MONAI's Gaussian falls almost to 0 at the borders of windows; dagman's has a floor.
    inferer.roi_weight_map = weight_tile(inferer.roi_size, FLOOR_HALF).to(device)
    for batch in batches:
        with torch.inference_mode():
            batch["pred"] = inferer(batch["image"].to(device), network).cpu()
        for item in decollate_batch(batch):
            finish(item)
            count += 1
    return count
