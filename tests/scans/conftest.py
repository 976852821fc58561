"""A small CT, and writers of it, as users bring them; DICOM is written by the fixture of all tests."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import MRImageStorage

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real scans; the test is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip("no real scans here")
    return DATA


@pytest.fixture(scope="session")
def ct() -> np.ndarray:
    """16 x 14 x 9 voxels in HU: air around a body of fat and muscle, every voxel a little different."""
    rng = np.random.default_rng(3)
    voxels = np.full((16, 14, 9), -1000.0)
    voxels[3:13, 3:12, :] = -100
    voxels[5:11, 5:10, 1:8] = 50
    return (voxels + rng.normal(0, 15, voxels.shape)).round().astype(np.int16).clip(-1024, None)


@pytest.fixture(scope="session")
def placement() -> np.ndarray:
    """An affine in RAS+ with three different spacings."""
    matrix = np.diag([0.8, 0.9, 2.5, 1.0])
    matrix[:3, 3] = [-30, 12, 100]
    return matrix


@pytest.fixture(scope="session")
def write_nifti():
    """Write voxels as NIfTI, with an affine; returns the path."""

    def write(path: Path, voxels: np.ndarray, matrix: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if matrix is None else matrix), path)
        return path

    return write


@pytest.fixture(scope="session")
def mr_tags() -> dict:
    """Tags that turn a written slice into MR without rescaling."""
    return {"SOPClassUID": MRImageStorage, "Modality": "MR"}


@pytest.fixture
def edit_dicom():
    """Change tags of one written file; None deletes."""

    def edit(path: Path, **tags) -> None:
        data = pydicom.dcmread(path)
        for name, value in tags.items():
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)
        data.save_as(path)

    return edit
