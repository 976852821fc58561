"""A dagman encoder as an extractor of TumorImagingBench (0.1.4): a class of its `BaseModel`, with load, preprocess and forward.

    extractor = DagmanExtractor()
    extractor.load("runs/first")                     # or an encoder folder, hub:OWNER/NAME, scratch:SIZE
    image = extractor.preprocess(row)                # row: image_path, coordX, coordY, coordZ (LPS mm), as in its tables
    feature = extractor.forward(image[None])         # B C

The bench gives every model the same 48 mm around a seed point; ours reads them in 64^3 voxels of HU, and applies its window inside.
The vector is `encoder.embed(scan, points=[point], crop_mm=48)`. It joins the others as AVAILABLE_EXTRACTORS["DagmanExtractor"].
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tumorimagingbench.models.base import BaseModel

import dagman
from dagman.encoder.embedding import pool_crops
from dagman.encoder.pooling import Pooling
from dagman.store.crops import Crop, CropSpec, choose_crop, cut_surroundings

SIDE_MM = 48.0


class DagmanExtractor(BaseModel):
    """Features of the 48 mm around a seed point: mean, spread and maximum of x1 to x4 within half that diameter."""

    def __init__(self, pooling: Pooling | None = None) -> None:
        super().__init__()
        self.pooling = pooling or Pooling()

    def load(self, weights_path: str | None = None) -> None:
        """Load an encoder; without a path, as the bench calls it, the one that DAGMAN_ENCODER names."""
        path = weights_path or os.environ.get("DAGMAN_ENCODER")
        if not path:
            raise ValueError("no encoder was given: load(path), or set DAGMAN_ENCODER to a run or an encoder folder")
        # It stays where dagman puts it: `.to("cuda")` of the bench moves inputs, and the encoder takes them from anywhere.
        self.encoder = dagman.load(path)

    def preprocess(self, x: Mapping[str, Any]) -> Tensor:
        """A row of the bench's tables to 1 X Y Z, in HU."""
        scan = self.encoder.read(x["image_path"])
        point = np.array([-float(x["coordX"]), -float(x["coordY"]), float(x["coordZ"])])
        crop = cut_surroundings(scan, point, choose_crop(None, CropSpec(mm=SIDE_MM)))
        self.inside, self.modality = crop.inside, crop.modality
        return torch.from_numpy(crop.voxels)[None]

    def forward(self, x: Tensor) -> Tensor:
        """Crops B 1 X Y Z of `preprocess` to B C, on their device."""
        crops = [Crop(voxels=view[0].cpu().numpy(), inside=self.inside, modality=self.modality) for view in x]
        return torch.from_numpy(pool_crops(self.encoder, crops, self.pooling)).to(x.device)
