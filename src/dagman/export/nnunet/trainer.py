"""A trainer of nnU-Net 2.8 for an encoder with a U-Net decoder; copied to `dagman_trainer.py` of an export.

dagman never imports this module, as it needs nnU-Net.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from safetensors.torch import load_file
from torch import Tensor

from dagman.model.backbone import build_backbone, find_backbone, is_decayed
from dagman.model.swin import SwinShape
from dagman.tasks.segment.unet import SegmentationNetwork

WEIGHTS = "encoder.safetensors"
"""File next to this one; needed to start training, but not to predict."""
WARM_UP = 10
"""Epochs over which the learning rate increases, but at most a twentieth of all epochs."""


_CUDA = torch.device("cuda")


class DagmanNetwork(SegmentationNetwork):
    """The segmentation network; its input is the output of CTNormalization over the HU window, with intensities in [0, 1]."""

    def forward(self, view: Tensor) -> Tensor:
        """Compute logits. Input is clipped to [0, 1], which spline interpolation and augmentation can exceed."""
        return super().forward(view.clamp(0.0, 1.0))


class DagmanTrainer(nnUNetTrainer):
    """Trains encoder and decoder together by AdamW, with one learning rate, a short warm-up and cosine decay."""

    # nnU-Net stores these arguments in its checkpoints by name.
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = _CUDA) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 3e-4
        self.weight_decay = 1e-2
        self.enable_deep_supervision = False

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> torch.nn.Module:
        """Build the network of the plans with random weights; pretrained ones are loaded in `initialize` or from a checkpoint."""
        values = configuration_manager.network_arch_init_kwargs
        if num_input_channels != 1 or "shape" not in values:
            raise RuntimeError("DagmanTrainer takes one channel and the plans that make_plans.py wrote: give -p dagmanPlans")
        shape: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values["shape"].items()}
        kind = find_backbone(values["backbone"])
        encoder = build_backbone(values["backbone"], (kind.shape or SwinShape)(**shape))
        network = DagmanNetwork(encoder, num_output_channels)
        network.decoder.window.copy_(torch.tensor(values["window"]))
        return network

    def initialize(self) -> None:
        """Build network and optimiser, and load the weights of the encoder strictly."""
        super().initialize()
        weights = load_file(Path(__file__).with_name(WEIGHTS))
        network = self.network.module if self.is_ddp else self.network
        network.encoder.load_state_dict(weights)
        self.print_to_log_file(f"{len(weights)} weights of the encoder loaded from {WEIGHTS}, none missing, none left over")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Create AdamW without weight decay for biases, norms and bias tables, and the learning-rate schedule."""
        named = list(self.network.named_parameters())
        groups = [
            {"params": [p for name, p in named if is_decayed(name, p) is decayed], "weight_decay": self.weight_decay * decayed}
            for decayed in (True, False)
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.initial_lr)
        return optimizer, _Schedule(optimizer, self.initial_lr, self.num_epochs)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: this decoder has no deep supervision."""

    def _do_i_compile(self) -> bool:
        # torch.compile has not been tried with this network; it would retrace the cached window plans.
        return False


class _Schedule:
    """Sets the learning rate from the number of the epoch only, so that resumed training continues unchanged."""

    def __init__(self, optimizer: torch.optim.Optimizer, rate: float, epochs: int) -> None:
        self.optimizer, self.rate, self.epochs = optimizer, rate, epochs

    def step(self, epoch: int) -> None:
        rising = min(WARM_UP, self.epochs // 20)
        done = (epoch - rising) / max(1, self.epochs - rising)
        share = (epoch + 1) / (rising + 1) if epoch < rising else 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share
