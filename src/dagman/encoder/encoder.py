"""The encoder: pretrained weights together with the preprocessing that they were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeGuard, cast, overload

import numpy as np
import torch
from jaxtyping import Float, Num
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dagman.encoder.folder import EncoderConfig, write_encoder
from dagman.encoder.foreign.layouts import ImportReport
from dagman.encoder.reader import ScanLike, ScanReader
from dagman.errors import EncoderError
from dagman.method.networks import Network
from dagman.model import to_unit_range
from dagman.records.hashes import hash_array, hash_bytes
from dagman.scans.scan import Modality, Scan
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.preparation import AIR, SCALED_RANGE, Preparation, PreparedScan

if TYPE_CHECKING:
    import pandas as pd

    from dagman.encoder.attention import Attention
    from dagman.encoder.dense.reading import DenseStore
    from dagman.encoder.embedding import Embedding
    from dagman.encoder.inputs.label_frames import LabelMap, LabelNames
    from dagman.encoder.pooling import Pooling
    from dagman.store.manifest import Store


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """An encoder with its preprocessing, as returned by `load_encoder`: in evaluation mode, without gradients.

    Attributes:
        network: The modules `encoder` (a backbone) and `semantic_attention` (or None); copy it to train it further.
        config: Sizes and preprocessing.
        device: Device that `features` computes on, such as "cpu" or "cuda:0".
        precision: "fp32" or "bf16" (autocast).
        source: Path or name that it was loaded from.
        imported: How the weights of another program were mapped; None for encoders written by dagman.
    """

    network: Network = field(repr=False)
    config: EncoderConfig
    device: str = "cpu"
    precision: str = "fp32"
    source: str = ""
    imported: ImportReport | None = None

    @cached_property
    def digest(self) -> str:
        """Hash of the weights and of all settings that affect features; equal digests mean equal features."""
        c = self.config
        parts = [f"{c.shape}{c.semantic}{c.spacing}{c.low}{c.high}{c.view}{c.crop_body}"]
        parts += [f"{name}:{hash_array(value.cpu().numpy())}" for name, value in sorted(self.network.state_dict().items())]
        return hash_bytes("|".join(parts).encode())

    def describe(self) -> str:
        """Describe size, method and training in words."""
        c = self.config
        trained = f"{c.method} weights"
        if c.step:
            trained = f"method {c.method}, {c.step} steps, the {c.weights}'s weights"
        elif c.fresh:
            trained = "random weights, not trained"
        return f"{c.size} encoder, {trained}"

    def save(self, folder: str | Path) -> None:
        """Write an encoder folder, which `load_encoder` reads."""
        write_encoder(folder, self.config, self.network.state_dict())

    @property
    def preparation(self) -> Preparation:
        """How scans are prepared for this encoder."""
        return self.reader.preparation

    @property
    def batch(self) -> int:
        """Batch size: 1 on the CPU, where larger batches are not faster and would change the last bit."""
        return 1 if self.device == "cpu" else 8

    @torch.inference_mode()
    def features(
        self, x: Num[Tensor, "B 1 X Y Z"] | ScanLike, *, modality: Modality = "CT", stages: Sequence[int] = (1, 2, 3, 4)
    ) -> list[Float[Tensor, "B C x y z"]]:
        """Compute feature maps in float32.

        Sides that are not multiples of 32 are padded. A ViT interpolates its position embeddings for views whose side differs from
        that of training (see `describe_positions`).

        Args:
            x: Views (int16 or float) in HU, or in stored values for MR, at the encoder's spacing in RAS+ order; the intensity
                window is applied inside. Or a scan (a path, a Scan, ...), which is prepared and processed as a whole (B = 1);
                `dagman.encoder.embedding.map_scan` also returns the positions of the cells.
            modality: Modality of the views.
            stages: Stages to return, from 1 to 4.

        Returns:
            The maps x1 to x4, or those of `stages`.

        Raises:
            EncoderError: The shape is wrong, or there are values that are not finite.
        """
        if not isinstance(x, Tensor):
            from dagman.encoder.embedding import map_scan

            return [features[None] for features in map_scan(self, x, stages).maps]
        view = self._scale(x, modality)
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            maps = self.network.encoder(view, stages=max(stages))
        return [maps[stage - 1].float() for stage in stages]

    @torch.inference_mode()
    def attend(self, x: Num[Tensor, "B 1 X Y Z"], *, modality: Modality = "CT") -> Float[Tensor, "B H x y z"]:
        """Compute the attention of the [CLS] token to the units of views, for each head (Eq. 1); each map sums to at most 1.

        Args:
            x: Views, as for `features`.
            modality: Modality of the views.

        Raises:
            EncoderError: The encoder has no semantic attention.
        """
        semantic, shape = self.network.semantic_attention, self.config.semantic
        if shape is None:
            trained = "has no trained [CLS] token" if self.network.encoder.own_cls else "has no semantic attention"
            what = f"{trained} (its method is {self.config.method!r})"
            raise EncoderError(what, where=self.source, do="Use an encoder pretrained by dagman, attmask or mst")
        if semantic is None:
            view = self._scale(x, modality)
            with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                return self.network.attend_heads(view).float()
        (units,) = self.features(x, modality=modality, stages=(shape.stage,))
        return semantic.attend(units).unflatten(2, units.shape[2:])

    def describe_positions(self, side: int | None = None) -> str:
        """Explain that position embeddings are interpolated; empty if the backbone has none, or at the side of training.

        Args:
            side: Side of the views in voxels; None for various sides.
        """
        learned = self.network.encoder.view
        if not learned or side == learned:
            return ""
        others = f"views of {side}^3" if side else "other views"
        return f"its positions were learned for views of {learned}^3 voxels, and are interpolated for {others}"

    def pad_value(self, modality: Modality) -> int:
        """Return the value used for padding in training: air in CT, and the lowest value of the range in MR."""
        return SCALED_RANGE[0] if modality == "MR" else AIR

    @cached_property
    def reader(self) -> ScanReader:
        """The reader that loads and prepares scans for this encoder."""
        preparation = Preparation(spacing=self.config.spacing, crop_body=self.config.crop_body)
        return ScanReader(preparation=preparation, modalities=self.config.modalities)

    def read(self, scan: ScanLike) -> Scan:
        """Read a scan on its own grid (stored scans: as prepared) and check that this encoder can use it.

        Raises:
            ScanError: The scan cannot be used.
            EncoderError: The encoder was not trained on such scans.
        """
        return self.reader.read(scan)

    def prepare(self, scan: ScanLike) -> PreparedScan:
        """Prepare a scan as in training: in RAS+ order, resampled, cropped to the body, int16. Raises the errors of `read`."""
        return self.reader.prepare(scan)

    @overload
    def embed(
        self,
        scan: ScanLike,
        mask: str | Path | Scan | NDArray[np.bool_] | None = None,
        points: ArrayLike | None = None,
        *,
        pooling: Pooling | None = None,
        crop_mm: float | None = None,
        crop_spacing: float | None = None,
    ) -> Embedding: ...

    @overload
    def embed(
        self,
        scan: ScanLike | pd.DataFrame,
        *,
        label_map: LabelMap,
        labels: LabelNames = None,
        pooling: Pooling | None = None,
    ) -> pd.DataFrame: ...

    @overload
    def embed(
        self,
        scan: list[str] | list[Path] | pd.DataFrame,
        *,
        pooling: Pooling | None = None,
        crop_mm: float | None = None,
        crop_spacing: float | None = None,
    ) -> pd.DataFrame: ...

    def embed(
        self,
        scan: ScanLike | list[str] | list[Path] | pd.DataFrame,
        mask: str | Path | Scan | NDArray[np.bool_] | None = None,
        points: ArrayLike | None = None,
        *,
        label_map: LabelMap | None = None,
        labels: LabelNames = None,
        pooling: Pooling | None = None,
        crop_mm: float | None = None,
        crop_spacing: float | None = None,
    ) -> Embedding | pd.DataFrame:
        """Compute feature vectors of the whole scan, of the structure in a `mask`, or of the surroundings of N `points`.

        Args:
            scan: A scan. With a list of paths or a data frame with the column `scan`, a data frame of features is returned (see
                `embed_frame`).
            mask: A file or scan on the scan's grid, or a boolean array of its shape; True inside.
            points: N x 3 in RAS mm.
            label_map: A file, a Scan or an array of labels on the scan's grid, or the name of a data frame's column of such files;
                a data frame with one row per label is returned, with its size and its features.
            labels: Names of labels by value, or a CSV with the columns id and name.
            pooling: Stages and statistics.
            crop_mm: Side of the crop around a structure or point in mm; None to choose it by the size of the structure.
            crop_spacing: Voxel size of the crop in mm; None to choose it by the size of the structure.

        Raises:
            ScanError: The scan cannot be used, the mask is on another grid or empty, or a point is outside.
            EncoderError: The arguments cannot be combined, or the encoder was not trained on such scans.
        """
        from dagman.encoder.embedding import embed_scan

        crop = CropSpec(crop_mm, crop_spacing)
        if label_map is not None:
            from dagman.encoder.inputs.label_frames import embed_labels

            if mask is not None or points is not None or crop != FROM_SIZE or isinstance(scan, list):
                do = "Give one scan or a data frame, without mask, points or crop"
                raise EncoderError("a label map applies to whole scans", do=do)
            return embed_labels(self, scan, label_map, labels, pooling)
        if _is_several(scan):
            from dagman.encoder.inputs.frames import embed_frame

            if mask is not None or points is not None:
                raise EncoderError(
                    "a mask or points cannot be combined with several scans", do="Give them as columns of a data frame"
                )
            return embed_frame(self, scan, pooling, crop)
        return embed_scan(self, cast(ScanLike, scan), mask, points, pooling=pooling, crop=crop)

    def embed_dense(
        self,
        scans: str | Path | Sequence[str] | Sequence[Path] | Store | pd.DataFrame,
        out: str | Path,
        *,
        stages: Sequence[int] = (1, 2, 3, 4),
        dtype: Literal["float32", "float16"] = "float32",
    ) -> DenseStore:
        """Write token grids of whole scans to a folder, from which regions can be read (`dagman embed --dense`).

        An interrupted call can be repeated to continue. Scans that cannot be used are listed in `out/rejected.csv`.

        Args:
            scans: Paths, a store, or a data frame with the column `scan` (and `patient`).
            out: The folder.
            stages: Stages to write, from 1 to 4.
            dtype: Type of the numbers; float16 halves the size.

        Raises:
            TaskError: No scan can be used.
            StoreError: `out` contains something else.
        """
        from dagman.encoder.inputs.dense_folders import fill_dense_folder

        return fill_dense_folder(self, scans, out, stages, dtype)

    def attention(self, scan: ScanLike) -> Attention:
        """Compute the attention of the [CLS] token over a whole scan, for each head and on average; see `Attention`."""
        from dagman.encoder.attention import attend_scan

        return attend_scan(self, scan)

    def _scale(self, x: Num[Tensor, "B 1 X Y Z"], modality: Modality) -> Float[Tensor, "B 1 X Y Z"]:
        """Scale views to intensities in [0, 1] on the device; raises the errors of `features`."""
        if x.ndim != 5 or x.shape[1] != 1:
            raise EncoderError(f"a view is B 1 X Y Z, not {' x '.join(map(str, x.shape))}", do="Give x[None, None] for one volume")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise EncoderError("a view holds values that are not finite numbers", do="Fill them, with -1024 HU where there is air")
        low, high = SCALED_RANGE if modality == "MR" else (self.config.low, self.config.high)
        return to_unit_range(x.to(self.device), low, high)


def _is_several(scan: object) -> TypeGuard[list[str] | list[Path] | pd.DataFrame]:
    # Compared by name, so that pandas is not imported unless the user has imported it.
    return isinstance(scan, list) or type(scan).__name__ == "DataFrame"
