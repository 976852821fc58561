"""A dagman encoder as a feature extractor for TumorImagingBench (0.1.4): a subclass of its `BaseModel`.

    extractor = DagmanExtractor()
    extractor.load("runs/first")                     # or an encoder folder, hub:OWNER/NAME, scratch:SIZE
    image = extractor.preprocess(row)                # row: image_path, coordX, coordY, coordZ (LPS, mm), as in its tables
    feature = extractor.forward(image[None])         # B C

The benchmark gives every model the same 48 mm around a seed point. dagman reads them as 64^3 voxels in HU and applies the encoder's
intensity window itself. The vector equals `encoder.embed(scan, points=[point], crop_mm=48)`. Add the class to the benchmark's
extractors as AVAILABLE_EXTRACTORS["DagmanExtractor"].
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
    """Features of the 48 mm around a seed point: mean, standard deviation and maximum of x1 to x4 in a ball half as wide."""

    def __init__(self, pooling: Pooling | None = None) -> None:
        super().__init__()
        self.pooling = pooling or Pooling()

    def load(self, weights_path: str | None = None) -> None:
        """Load an encoder: from `weights_path`, or from DAGMAN_ENCODER if there is none, as when the benchmark calls it."""
        path = weights_path or os.environ.get("DAGMAN_ENCODER")
        if not path:
            raise ValueError("no encoder was given: load(path), or set DAGMAN_ENCODER to a run or an encoder folder")
        # The encoder stays on the device that dagman chooses. The benchmark's `.to("cuda")` moves only inputs, which it accepts
        # from any device.
        self.encoder = dagman.load(path)

    def preprocess(self, x: Mapping[str, Any]) -> Tensor:
        """Crop of one row of the benchmark's tables, 1 X Y Z, in HU."""
        scan = self.encoder.read(x["image_path"])
        point = np.array([-float(x["coordX"]), -float(x["coordY"]), float(x["coordZ"])])
        crop = cut_surroundings(scan, point, choose_crop(None, CropSpec(mm=SIDE_MM)))
        self.inside, self.modality = crop.inside, crop.modality
        return torch.from_numpy(crop.voxels)[None]

    def forward(self, x: Tensor) -> Tensor:
        """Features B C of crops B 1 X Y Z from `preprocess`, on the device of the crops."""
        crops = [Crop(voxels=view[0].cpu().numpy(), inside=self.inside, modality=self.modality) for view in x]
        return torch.from_numpy(pool_crops(self.encoder, crops, self.pooling)).to(x.device)
