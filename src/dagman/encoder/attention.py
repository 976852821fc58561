"""What the [CLS] token attends to all over a scan, as maps that lie on the scan.

Attention is a share of one view, so each tile's is multiplied by its number of keys before tiles are blended: 1 means "as much
as if all were attended alike" everywhere, whatever tile a place was in. It cannot say that one tile as a whole matters more.
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
"""Maps are rounded to this when written: far below any difference seen, and the files shrink to a quarter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Attention relative to uniform, on the units of a prepared scan: `heads` H x y z, each unit `stride` voxels wide.

    `prepared` is the scan as the encoder saw it, `tiling` how it was padded; `origin` says in words whose attention it is.
    """

    heads: Float[Tensor, "H x y z"]
    stride: int
    prepared: PreparedScan
    tiling: Tiling
    origin: str

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """The average over heads, on the prepared grid: X Y Z, linear between the middles of units."""
        return self._spread(self.heads.mean(dim=0))

    def head(self, number: int) -> NDArray[np.float32]:
        """The map of one head, counted from 1, on the prepared grid."""
        if not 1 <= number <= len(self.heads):
            raise EncoderError(f"there is no head {number}", do=f"Choose 1 to {len(self.heads)}")
        return self._spread(self.heads[number - 1])

    def restore(self, values: NDArray[np.float32], scan: Scan) -> NDArray[np.float32]:
        """A map of the prepared grid on the grid of the scan it came from; 0 where the encoder did not look (air cut off)."""
        restored: NDArray[np.float32] = restore_to_scan_grid(values, self.prepared, scan)
        return restored

    def _spread(self, units: Float[Tensor, "x y z"]) -> NDArray[np.float32]:
        # Corners stay, edges are continued: as Affine.rescale places cells.
        voxels = torch.nn.functional.interpolate(units[None, None], scale_factor=self.stride, mode="trilinear", align_corners=False)
        return np.ascontiguousarray(voxels[0, 0].numpy()[self.tiling.scan_box])


def attend_scan(encoder: Encoder, scan: ScanLike) -> Attention:
    """See `Encoder.attention`; raises EncoderError when the encoder has no semantic attention."""
    prepared = encoder.prepare(scan)

    def attend(tiles: Float[Tensor, "B 1 S S S"]) -> list[Float[Tensor, "B H x y z"]]:
        heads = encoder.attend(tiles, modality=prepared.modality)
        # The softmax runs over all units and the [CLS] token itself.
        return [heads * (heads[0, 0].numel() + 1)]

    tiling = plan_tiles(prepared.shape, encoder.config.view)
    fill = encoder.pad_value(prepared.modality)
    (heads,) = sliding_window_inference(attend, prepared.voxels, tiling, fill=fill, batch=encoder.batch)
    stride = tiling.padded[0] // heads.shape[1]
    return Attention(heads=heads, stride=stride, prepared=prepared, tiling=tiling, origin=encoder.describe())


def write_attention(attention: Attention, scan: Scan, folder: str | Path) -> list[Path]:
    """Write `attention_mean.nii.gz` and `attention_head_1.nii.gz`, ... : float32 on the scan's own grid and affine.

    Values are relative to uniform (1 = as if all units were attended alike); 0 where the encoder did not look.
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
    """Write the mean over heads as a DICOM Parametric Map on the slices of its series; 1 is the middle of its window.

    files: of the series. identified: see `scans.dicom.derived.sources.write_derived`. Raises MissingExtraError without highdicom,
    ScanError where the series cannot be referred to, or where its slices had to be resampled.
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
