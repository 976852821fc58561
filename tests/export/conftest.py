"""Encoders to export: small, and with every weight random, so that a swapped norm or bias would show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dagman
from dagman.encoder.encoder import Encoder
from dagman.model import SwinShape
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
