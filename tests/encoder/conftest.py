"""A very small encoder, and bodies in air to look at: every test of this folder runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dagman.encoder.encoder import Encoder
from dagman.encoder.folder import EncoderConfig
from dagman.encoder.loading import load_encoder
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan
from dagman.testing import make_body, make_tiny_config, write_nifti


@pytest.fixture(scope="session")
def config() -> EncoderConfig:
    return make_tiny_config()


@pytest.fixture(scope="session")
def encoder_folder(make_tiny_encoder: Callable[..., Path]) -> Path:
    return make_tiny_encoder()


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> Encoder:
    return load_encoder(encoder_folder, device="cpu")


@pytest.fixture(scope="session")
def body_hu() -> Callable[..., np.ndarray]:
    """The maker of bodies, see `dagman.testing`."""
    return make_body


@pytest.fixture(scope="session")
def body(body_hu: Callable[..., np.ndarray]) -> Scan:
    """A body at 5 mm, RAS+."""
    affine = Affine(np.diag([5.0, 5.0, 5.0, 1.0]))
    return Scan(voxels=body_hu(), affine=affine, modality="CT", patient="P-1", source="body.nii.gz")


@pytest.fixture(scope="session")
def write_image() -> Callable[..., Path]:
    """The writer of NIfTI files, see `dagman.testing`."""
    return write_nifti
