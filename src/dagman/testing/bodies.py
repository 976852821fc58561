"""Make a simple body in air, and write arrays as NIfTI files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from dagman.randomness import generator


def make_body(shape: tuple[int, int, int] = (44, 40, 36), seed: int = 0) -> np.ndarray:
    """Make a body with fat, two lungs and noise, surrounded by air, as int16 HU of shape X Y Z.

    The body fills the array at any spacing; 40 voxels at 5 mm are about the size of a chest.
    """
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / 0.85) ** 2 + (y / 0.8) ** 2 < 1] = -100
    hu[(x / 0.75) ** 2 + (y / 0.7) ** 2 < 1] = 40
    for side in (-0.35, 0.35):
        hu[((x - side) / 0.25) ** 2 + (y / 0.4) ** 2 + (z / 0.8) ** 2 < 1] = -850
    hu += generator(seed, "body").normal(0, 15, shape)
    return np.clip(np.rint(hu), -1024, 3000).astype(np.int16)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | float = 5.0) -> Path:
    """Write an array of shape X Y Z as NIfTI, creating missing folders; returns the path.

    Args:
        path: File name ending in .nii or .nii.gz.
        voxels: HU, or the values of a mask.
        affine: 4 x 4 matrix from voxels to RAS in mm, or the spacing in mm of an RAS+ grid whose first voxel is at 0 0 0.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = np.diag([affine, affine, affine, 1.0]) if isinstance(affine, float | int) else affine
    image = nibabel.Nifti1Image(voxels, matrix)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path
