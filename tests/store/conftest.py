"""Small made-up scans: a trunk with lungs in air, on a table, with noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dagman.scans.affine import Affine
from dagman.scans.scan import Scan


def make_trunk(seed: int = 0, shape: tuple[int, int, int] = (40, 40, 24)) -> np.ndarray:
    """HU int16: an ellipse of soft tissue with two lungs, air around, a thin table behind."""
    x, y, z = (np.linspace(-1, 1, size) for size in shape)
    x, y, z = np.meshgrid(x, y, z, indexing="ij")
    voxels = np.full(shape, -1000.0)
    voxels[(x / 0.6) ** 2 + (y / 0.45) ** 2 < 1] = 40
    for side in (-1, 1):
        voxels[((x - side * 0.28) / 0.2) ** 2 + (y / 0.3) ** 2 + (z / 0.8) ** 2 < 1] = -850
    voxels[:, 2:3, :] = -200
    return np.rint(voxels + np.random.default_rng(seed).normal(0, 10, shape)).astype(np.int16)


def make_scan(voxels: np.ndarray, matrix: np.ndarray | None = None, modality: str = "CT", spacing: float = 4.0) -> Scan:
    matrix = np.diag([spacing, spacing, spacing, 1.0]) if matrix is None else matrix
    return Scan(voxels=voxels, affine=Affine(matrix), modality=modality, patient="p", source="scan.nii.gz")  # type: ignore[arg-type]


def write_nifti(path: Path, voxels: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1.0]) if matrix is None else matrix)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


@pytest.fixture(scope="session")
def trunk() -> Callable[..., np.ndarray]:
    return make_trunk


@pytest.fixture(scope="session")
def scan_of() -> Callable[..., Scan]:
    return make_scan


@pytest.fixture(scope="session")
def nifti_of() -> Callable[..., Path]:
    return write_nifti


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans, two of them one scan under two names, and a file that is none."""
    folder = tmp_path_factory.mktemp("cohort")
    for number in range(5):
        write_nifti(folder / f"p{number}" / "ct.nii.gz", make_trunk(number))
    write_nifti(folder / "p9" / "again.nii", make_trunk(3))
    (folder / "broken.nii.gz").write_bytes(b"")
    return folder
