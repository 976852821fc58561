"""A very small encoder, and bodies in air to look at: every test of this folder runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from dagman.encoder.encoder import Encoder
from dagman.encoder.folder import EncoderConfig, write_encoder
from dagman.encoder.loading import load_encoder
from dagman.method.networks import Network, ProjectorShape, SemanticShape
from dagman.model import SwinShape
from dagman.randomness import generator
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan

CONFIG = EncoderConfig(
    shape=SwinShape(embed=8, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4)),
    semantic=SemanticShape(heads=2),
    size="tiny",
    method="dagman",
    spacing=4.0,
    low=-1000.0,
    high=500.0,
    view=32,
    step=7,
)


@pytest.fixture(scope="session")
def config() -> EncoderConfig:
    return CONFIG


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(CONFIG.shape, CONFIG.semantic, ProjectorShape(names=()), reconstruct=False)
    folder = tmp_path_factory.mktemp("run") / "encoder"
    write_encoder(folder, CONFIG, network.state_dict())
    return folder


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> Encoder:
    return load_encoder(encoder_folder, device="cpu")


@pytest.fixture(scope="session")
def body_hu() -> Callable[..., np.ndarray]:
    """A function that makes a body with fat, two lungs and noise in air: int16 HU X Y Z."""

    def make(shape: tuple[int, int, int] = (44, 40, 36), seed: int = 0) -> np.ndarray:
        places = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
        x, y, z = places
        hu = np.full(shape, -1000.0)
        hu[(x / 0.85) ** 2 + (y / 0.8) ** 2 < 1] = -100
        hu[(x / 0.75) ** 2 + (y / 0.7) ** 2 < 1] = 40
        for side in (-0.35, 0.35):
            hu[((x - side) / 0.25) ** 2 + (y / 0.4) ** 2 + (z / 0.8) ** 2 < 1] = -850
        hu += generator(seed, "body").normal(0, 15, shape)
        return np.clip(np.rint(hu), -1024, 3000).astype(np.int16)

    return make


@pytest.fixture(scope="session")
def body(body_hu: Callable[..., np.ndarray]) -> Scan:
    """A body at 5 mm, RAS+."""
    affine = Affine(np.diag([5.0, 5.0, 5.0, 1.0]))
    return Scan(voxels=body_hu(), affine=affine, modality="CT", patient="P-1", source="body.nii.gz")


@pytest.fixture(scope="session")
def write_image() -> Callable[..., Path]:
    """A function that writes an array as NIfTI with an affine, 5 mm RAS+ unless told."""

    def write(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(voxels, np.diag([5.0, 5.0, 5.0, 1.0]) if affine is None else affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
        return path

    return write
