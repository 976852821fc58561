"""The network of a MONAI bundle, and the loop that applies it; part of the file `scripts/dagman_network.py` of an export."""

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
    """Views with intensities in [0, 1] to chances of the classes, which a sliding window averages."""

    def forward(self, view: Tensor) -> Tensor:
        """Chances, background first."""
        return super().forward(torch.as_tensor(view)).softmax(dim=1)


def load_network(folder: str) -> ProbabilityNetwork:
    """The network of `network.json` with the weights of `model.safetensors`, loaded strictly."""
    values = json.loads((Path(folder) / "network.json").read_text(encoding="utf-8"))
    shape: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values["shape"].items()}
    kind = find_backbone(values["backbone"])
    network = ProbabilityNetwork(build_backbone(values["backbone"], (kind.shape or SwinShape)(**shape)), values["classes"])
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval()


def label_scans(batches: Iterable[dict[str, Any]], inferer: Any, network: ProbabilityNetwork, finish: Callable[[Any], Any]) -> int:
    """Apply the network to batches of one `image` each; `finish` is given the batch's one item with `pred`. Returns how many."""
    from monai.data.utils import decollate_batch

    count = 0
    device = next(network.parameters()).device
    # dagman's Gaussian: MONAI's has no floor to speak of, so that the borders of windows count otherwise.
    inferer.roi_weight_map = weight_tile(inferer.roi_size, FLOOR_HALF).to(device)
    for batch in batches:
        with torch.inference_mode():
            batch["pred"] = inferer(batch["image"].to(device), network).cpu()
        for item in decollate_batch(batch):
            finish(item)
            count += 1
    return count
