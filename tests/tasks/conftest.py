"""A very small encoder, and bodies with a bright ball in them to segment: for the tests of segmentation and prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dagman.encoder.encoder import Encoder
from dagman.encoder.loading import load_encoder


@pytest.fixture(scope="session")
def small_encoder_folder(make_tiny_encoder: Callable[..., Path]) -> Path:
    return make_tiny_encoder(spacing=5.0, semantic=False)


@pytest.fixture(scope="session")
def small_encoder(small_encoder_folder: Path) -> Encoder:
    return load_encoder(small_encoder_folder, device="cpu")


@pytest.fixture(scope="session")
def make_ball() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """A function that makes int16 HU X Y Z of a body with lungs and a ball of 300 HU, and the ball's mask (uint8)."""

    def make(seed: int = 0, shape: tuple[int, int, int] = (36, 34, 30), radius: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        places = np.stack(np.meshgrid(*(np.arange(size, dtype=float) for size in shape), indexing="ij"))
        middle = (np.array(shape) - 1) / 2
        x, y, _ = ((places[axis] - middle[axis]) / middle[axis] for axis in range(3))
        hu = np.where((x / 0.85) ** 2 + (y / 0.8) ** 2 < 1, 40.0, -1000.0)
        for side in (-0.6, 0.6):
            hu[((x - side) / 0.18) ** 2 + (y / 0.4) ** 2 < 1] = -850
        center = middle + rng.uniform(-1.5, 1.5, 3)
        ball = np.sqrt(((places - center[:, None, None, None]) ** 2).sum(0)) < radius
        hu[ball] = 300
        return np.rint(hu + rng.normal(0, 10, shape)).astype(np.int16), ball.astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def ball_cohort(tmp_path_factory: pytest.TempPathFactory, make_ball) -> Path:
    """Five patients with a ball (value 3 of the mask) at 5 mm, and table.csv."""
    folder = tmp_path_factory.mktemp("balls")
    rows = ["scan,mask,patient"]
    for number in range(5):
        hu, ball = make_ball(number)
        affine = np.diag([-5.0, 5.0, 5.0, 1.0]) if number % 2 else np.diag([5.0, 5.0, 5.0, 1.0])
        nib.save(nib.Nifti1Image(hu, affine), folder / f"ct_{number}.nii.gz")
        nib.save(nib.Nifti1Image(ball * np.uint8(3), affine), folder / f"ball_{number}.nii.gz")
        rows.append(f"ct_{number}.nii.gz,ball_{number}.nii.gz,p{number}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder
