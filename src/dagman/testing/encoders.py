"""Write a tiny, randomly initialised encoder that takes well under a second to make and run; settings of an equally small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dagman.encoder.folder import EncoderConfig, write_encoder
from dagman.method.networks import Network, ProjectorShape, SemanticShape
from dagman.model import SwinShape

TINY_SHAPE = SwinShape(embed=8, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4))
"""One block per stage; feature maps of 16, 32, 64 and 128 channels."""

TINY_SETTINGS = (
    "view.side=32",
    "view.spacing=4",
    "model.embed=8",
    "model.depths=[1, 1, 1, 1]",
    "model.heads=[1, 2, 2, 4]",
    "model.sa_heads=2",
    "projector.hidden=16",
    "projector.bottleneck=8",
    "projector.prototypes=16",
    "train.steps=6",
    "train.monitor_views=2",
    "train.monitor_every=2",
    "train.precision=fp32",
    "train.device=cpu",
    "train.workers=0",
)
"""`assignments` for `dagman.pretrain` (`--set` on the command line): a run of six steps that takes about a second."""


def make_tiny_config(*, spacing: float = 4.0, semantic: bool = True, **changes: Any) -> EncoderConfig:
    """Describe an encoder of `TINY_SHAPE` for CT in views of 32^3 voxels.

    Args:
        spacing: Voxel size in mm.
        semantic: Whether it has semantic attention, which provides attention maps.
        changes: Other fields of the configuration, which override the defaults here.
    """
    fields: dict[str, Any] = {
        "shape": TINY_SHAPE,
        "semantic": SemanticShape(heads=2) if semantic else None,
        "size": "tiny",
        "method": "dagman",
        "spacing": spacing,
        "low": -1000.0,
        "high": 500.0,
        "view": 32,
        "step": 7,
    }
    return EncoderConfig(**fields | changes)


def write_tiny_encoder(folder: Path, config: EncoderConfig | None = None, *, seed: int = 0) -> Path:
    """Write a randomly initialised encoder folder, which `dagman.load` and all commands accept; returns the folder.

    Args:
        folder: Output folder, created if it is missing.
        config: Configuration from `make_tiny_config`. Default: CT at 4 mm.
        seed: Seed of the weights; torch's global generator is not affected.
    """
    config = config or make_tiny_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(config.shape, config.semantic, ProjectorShape(names=()), reconstruct=False)
    write_encoder(folder, config, network.state_dict())
    return folder
