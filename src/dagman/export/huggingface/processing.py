"""The preparation of scans as an image processor of transformers; part of the file `image_processing_dagman.py` of an export."""

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
    """A CT scan in HU (or an MR scan) to one view in [0, 1]: upright, resampled, cropped to the body, padded.

    spacing: mm. low, high: HU that become 0 and 1; MR: stored values that the 0.5 and 99.5 percentile are brought to.
    pad: value of what lies outside. side: least side in voxels. multiple: sides are multiples of it.
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
        """`pixel_values` (1 1 X Y Z, float32), and `affine` (1 4 4): of the view's voxels, to RAS mm.

        scan: a NIfTI file, an image of nibabel, or an array X Y Z with its 4 x 4 `affine` to RAS mm.
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
        """The view X Y Z, and the affine of its voxels."""
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
