"""Encoders to export: small, and with every weight random, so that a swapped norm or bias would show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dagman
from dagman.encoder.encoder import Encoder
from dagman.encoder.folder import EncoderConfig
from dagman.errors import MissingExtraError
from dagman.method.networks import Network, ProjectorShape, SemanticShape
from dagman.model import BACKBONES, SwinShape, ViTShape
from dagman.testing.encoders import make_tiny_config, write_tiny_encoder

SHAPE = SwinShape(embed=12, depths=(2, 1, 2, 1), heads=(2, 2, 4, 4))


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder with random norms, biases and tables too, which fresh weights leave at 1 and 0."""
    folder = tmp_path_factory.mktemp("encoders") / "small"
    encoder = dagman.load(write_tiny_encoder(folder, make_tiny_config(shape=SHAPE, low=-900.0, high=400.0)), device="cpu")
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in encoder.network.named_parameters():
            spread = 0.3 if value.ndim == 1 or "table" in name else value[0].numel() ** -0.5
            value.copy_(float("norm" in name and name.endswith("weight")) + spread * torch.randn(value.shape, generator=draws))
    encoder.save(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> Encoder:
    return dagman.load(encoder_folder, device="cpu")


@pytest.fixture(scope="session")
def make_view() -> object:
    """Views in HU, beyond the window at both of its ends."""

    def make(*sides: int, batch: int = 1) -> torch.Tensor:
        return torch.randint(-1100, 700, (batch, 1, *sides), generator=torch.Generator().manual_seed(sum(sides))).float()

    return make


@pytest.fixture(scope="session")
def make_encoder() -> Callable[[str], Encoder]:
    """Encoders of any backbone, all weights random: fresh norms, biases and positions would hide one that is swapped."""
    made: dict[str, Encoder] = {}

    def make(name: str) -> Encoder:
        if name in made:
            return made[name]
        shapes = {
            "vit": ViTShape(embed=24, depths=(1, 2, 1, 1), heads=(2, 2, 2, 2), view=64),
            "segresnet:8": SwinShape(embed=8, depths=(2, 2, 4, 4), heads=(1, 1, 1, 1)),
            "monai-swin": SwinShape(embed=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4)),
        }
        kind = BACKBONES[name.partition(":")[0]]
        config = EncoderConfig(
            shape=shapes.get(name) or kind.baselines[name.partition(":")[2]],
            semantic=SemanticShape(stage=4, heads=2, depth=0) if name == "vit" else None,
            size=name, method="dagman", spacing=2.0, low=-900.0, high=400.0, view=64, backbone=name,
            mask_fill="token" if "token" in kind.mask_fills else "zero",
        )  # fmt: skip
        parts = {"mask_fill": config.mask_fill, "backbone": name, "reconstruct": False}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            try:
                network = Network(config.shape, config.semantic, ProjectorShape(names=()), **parts)
            except MissingExtraError as missing:
                pytest.skip(str(missing))
            with torch.no_grad():
                for parameter in network.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(0.3 * torch.randn(parameter.shape))
        made[name] = Encoder(network=network.requires_grad_(False).eval(), config=config, source="fresh")
        return made[name]

    return make
