"""Maps of the [CLS] token's attention over whole scans.

Attention weights sum to 1 within each view, so those of a tile are multiplied by its number of keys before tiles are blended. Then
1 means uniform attention in every tile; the maps cannot show that one tile as a whole is more important than another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dagman.encoder.encoder import Encoder
from dagman.encoder.reader import ScanLike
from dagman.encoder.tiling import Tiling, plan_tiles, sliding_window_inference
from dagman.errors import EncoderError
from dagman.records.files import write_whole
from dagman.scans.dicom.derived import write_parametric_map
from dagman.scans.scan import Scan
from dagman.store.preparation import PreparedScan, restore_to_scan_grid

STEP = 2.0**-14
"""Maps are rounded to multiples of this when written: far below visible differences, and files shrink to a quarter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Attention relative to uniform, on the units of a prepared scan.

    Attributes:
        heads: A map for each head, H x y z.
        stride: Voxels of the prepared scan per unit, along each axis.
        prepared: The scan as the encoder received it.
        tiling: How the scan was padded and tiled.
        origin: Description of the encoder.
    """

    heads: Float[Tensor, "H x y z"]
    stride: int
    prepared: PreparedScan
    tiling: Tiling
    origin: str

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """The mean over heads on the grid of the prepared scan (X Y Z), interpolated linearly between the centres of units."""
        return self._spread(self.heads.mean(dim=0))

    def head(self, number: int) -> NDArray[np.float32]:
        """Return the map of one head, counted from 1, on the grid of the prepared scan (X Y Z)."""
        if not 1 <= number <= len(self.heads):
            raise EncoderError(f"there is no head {number}", do=f"Choose 1 to {len(self.heads)}")
        return self._spread(self.heads[number - 1])

    def restore(self, values: NDArray[np.float32], scan: Scan) -> NDArray[np.float32]:
        """Resample a map from the prepared grid to the grid of the original scan; 0 in regions that were cropped away."""
        restored: NDArray[np.float32] = restore_to_scan_grid(values, self.prepared, scan)
        return restored

    def _spread(self, units: Float[Tensor, "x y z"]) -> NDArray[np.float32]:
        # Corners are aligned and edges extrapolated, consistent with how Affine.rescale places cells.
        voxels = torch.nn.functional.interpolate(units[None, None], scale_factor=self.stride, mode="trilinear", align_corners=False)
        return np.ascontiguousarray(voxels[0, 0].numpy()[self.tiling.scan_box])


def attend_scan(encoder: Encoder, scan: ScanLike) -> Attention:
    """Compute the attention over a scan; see `Encoder.attention`.

    Raises:
        EncoderError: The encoder has no semantic attention.
    """
    prepared = encoder.prepare(scan)

    def attend(tiles: Float[Tensor, "B 1 S S S"]) -> list[Float[Tensor, "B H x y z"]]:
        heads = encoder.attend(tiles, modality=prepared.modality)
        # The softmax is over all units and the [CLS] token itself.
        return [heads * (heads[0, 0].numel() + 1)]

    tiling = plan_tiles(prepared.shape, encoder.config.view)
    fill = encoder.pad_value(prepared.modality)
    (heads,) = sliding_window_inference(attend, prepared.voxels, tiling, fill=fill, batch=encoder.batch)
    stride = tiling.padded[0] // heads.shape[1]
    return Attention(heads=heads, stride=stride, prepared=prepared, tiling=tiling, origin=encoder.describe())


def write_attention(attention: Attention, scan: Scan, folder: str | Path) -> list[Path]:
    """Write `attention_mean.nii.gz` and `attention_head_1.nii.gz`, ..., and return their paths.

    Files are float32 on the grid of the original scan. Values are relative to uniform attention (1); 0 in regions that were cropped
    away.
    """
    folder = Path(folder)
    paths = [folder / "attention_mean.nii.gz"]
    _write_map(attention, attention.mean, scan, paths[0])
    for number in range(1, len(attention.heads) + 1):
        paths.append(folder / f"attention_head_{number}.nii.gz")
        _write_map(attention, attention.head(number), scan, paths[-1])
    return paths


def write_attention_dicom(
    attention: Attention, scan: Scan, files: Sequence[Path], path: str | Path, *, identified: bool = False
) -> None:
    """Write the mean over heads as a DICOM Parametric Map on the slices of the scan's series, with a window centred at 1.

    Args:
        attention: The attention.
        scan: The scan.
        files: Files of its series.
        path: File to write.
        identified: See `scans.dicom.derived.sources.write_derived`.

    Raises:
        MissingExtraError: highdicom is not installed.
        ScanError: The series cannot be referenced, or its slices had to be resampled.
    """
    restored = attention.restore(attention.mean, scan)
    inside = restored[restored > 0]
    reach = float(np.abs(inside - 1).max()) if inside.size else 1.0
    write_parametric_map(
        path,
        (np.rint(restored / STEP) * STEP).astype(np.float32),
        files,
        meaning="[CLS] attention relative to uniform, mean of heads; 1 = uniform",
        description="Attention by dagman; not for diagnosis",
        window=(1 - max(reach, STEP), 1 + max(reach, STEP)),
        identified=identified,
    )


def _write_map(attention: Attention, values: NDArray[np.float32], scan: Scan, path: Path) -> None:
    restored = attention.restore(values, scan)
    rounded = (np.rint(restored / STEP) * STEP).astype(np.float32)
    image = nib.Nifti1Image(rounded, scan.affine.matrix)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"[CLS] attention, 1 = uniform"
    with write_whole(path) as temporary:
        nib.save(image, temporary)
