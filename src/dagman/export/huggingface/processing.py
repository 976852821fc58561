"""The preparation of scans as an image processor of transformers; copied to `image_processing_dagman.py` of an export."""

from __future__ import annotations

from typing import Any, ClassVar

import nibabel
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from dagman.scans.affine import Affine
from dagman.store.body import CT_LEVELS, SCALED_LEVELS, find_body
from dagman.store.resampling import resample_voxels


class DagmanImageProcessor(ImageProcessingMixin):
    """Prepares a CT scan in HU (or an MR scan) as one view in [0, 1]: reoriented, resampled, cropped to the body, padded.

    Args:
        spacing: Voxel size in mm.
        low, high: HU that become 0 and 1; for MR, stored values to which the 0.5 and 99.5 percentile are mapped.
        pad: Value of the padding, in the unit of `low` and `high`.
        side: Smallest side in voxels.
        multiple: Sides are multiples of this number of voxels.
        crop_body: Whether to crop the scan to the body.
        modality: "CT" or "MR".
        **others: Passed to `ImageProcessingMixin`.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(
        self,
        spacing: float = 2.0,
        low: float = -1000.0,
        high: float = 500.0,
        pad: float = -1024.0,
        side: int = 96,
        multiple: int = 32,
        crop_body: bool = True,
        modality: str = "CT",
        **others: Any,
    ) -> None:
        self.spacing, self.low, self.high, self.pad = spacing, low, high, pad
        self.side, self.multiple, self.crop_body, self.modality = side, multiple, crop_body, modality
        super().__init__(**others)

    def __call__(self, scan: Any, affine: ArrayLike | None = None, return_tensors: str = "pt") -> BatchFeature:
        """Prepare a scan.

        Args:
            scan: A NIfTI file, a nibabel image, or an array X Y Z.
            affine: The 4 x 4 affine of an array, from voxels to RAS mm; None for files and images.
            return_tensors: "pt" for torch tensors; otherwise numpy arrays.

        Returns:
            `pixel_values` (1 1 X Y Z, float32), and `affine` (1 4 4) from voxels of the view to RAS mm.
        """
        if affine is None:
            image: Any = scan if hasattr(scan, "get_fdata") else nibabel.load(scan)
            scan, affine = image.get_fdata(dtype=np.float32), image.affine
        view, placed = self.prepare(np.asarray(scan), Affine(affine))
        data = {"pixel_values": view[None, None], "affine": placed.matrix[None].copy()}
        if return_tensors == "pt":
            data = {name: torch.from_numpy(value) for name, value in data.items()}
        return BatchFeature(data=data)

    def prepare(self, voxels: NDArray, affine: Affine) -> tuple[NDArray[np.float32], Affine]:
        """Prepare an array X Y Z; returns the view X Y Z and the affine of its voxels."""
        scaled = self.modality == "MR"
        limits = np.percentile(voxels, (0.5, 99.5)) if scaled else (0.0, 0.0)
        order, flips = affine.nearest_ras()
        voxels, affine = voxels.transpose(order), affine.permute(order)
        for axis in np.flatnonzero(flips):
            affine = affine.flip(int(axis), voxels.shape[axis])
            voxels = np.flip(voxels, int(axis))
        values, affine = resample_voxels(voxels, affine, self.spacing)
        if scaled:
            values -= np.float32(limits[0])
            values *= np.float32((self.high - self.low) / (limits[1] - limits[0]))
        stored = np.clip(np.rint(values), -32768, 32767).astype(np.int16)
        if self.crop_body:
            start, stop = find_body(stored, self.spacing, SCALED_LEVELS if scaled else CT_LEVELS)
            stored = stored[tuple(slice(first, last) for first, last in zip(start, stop, strict=True))]
            affine = affine.crop(start)
        sides = [max(self.side, -(-size // self.multiple) * self.multiple) for size in stored.shape]
        before = [(whole - size) // 2 for whole, size in zip(sides, stored.shape, strict=True)]
        padding = [(first, whole - size - first) for first, whole, size in zip(before, sides, stored.shape, strict=True)]
        padded = np.pad(stored, padding, constant_values=self.pad).astype(np.float32)
        view = np.clip((padded - np.float32(self.low)) / np.float32(self.high - self.low), 0, 1).astype(np.float32)
        return view, affine.crop([-first for first in before])
