"""What users keep of a pretraining: weights that take scans as they are and do with them what they were trained with, or refuse."""

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
    """An encoder with the preprocessing it was trained with; made by `load_encoder`, in evaluation mode, without gradients.

    Attributes:
        network: Holds `encoder` (a backbone) and `semantic_attention` (or None); copy it to train it further.
        config: Its sizes and preprocessing.
        device: What `features` computes on, such as "cpu" or "cuda:0".
        precision: "fp32" or "bf16" (autocast).
        source: Where it was loaded from.
        imported: What became of each weight of a file that others wrote; None for dagman's own.
    """

    network: Network = field(repr=False)
    config: EncoderConfig
    device: str = "cpu"
    precision: str = "fp32"
    source: str = ""
    imported: ImportReport | None = None

    @cached_property
    def digest(self) -> str:
        """A hash of the weights and of all that decides what features come out; equal digests give equal features."""
        c = self.config
        parts = [f"{c.shape}{c.semantic}{c.spacing}{c.low}{c.high}{c.view}{c.crop_body}"]
        parts += [f"{name}:{hash_array(value.cpu().numpy())}" for name, value in sorted(self.network.state_dict().items())]
        return hash_bytes("|".join(parts).encode())

    def describe(self) -> str:
        """Size, method and training in words."""
        c = self.config
        trained = f"{c.method} weights"
        if c.step:
            trained = f"method {c.method}, {c.step} steps, the {c.weights}'s weights"
        elif c.fresh:
            trained = "random weights, not trained"
        return f"{c.size} encoder, {trained}"

    def save(self, folder: str | Path) -> None:
        """Write an encoder folder, whatever the backbone; `load_encoder` reads it."""
        write_encoder(folder, self.config, self.network.state_dict())

    @property
    def preparation(self) -> Preparation:
        """How scans are prepared for it."""
        return self.reader.preparation

    @property
    def batch(self) -> int:
        """Views put through at once: one on the CPU, where more gain nothing and would change the last bit."""
        return 1 if self.device == "cpu" else 8

    @torch.inference_mode()
    def features(
        self, x: Num[Tensor, "B 1 X Y Z"] | ScanLike, *, modality: Modality = "CT", stages: Sequence[int] = (1, 2, 3, 4)
    ) -> list[Float[Tensor, "B C x y z"]]:
        """Feature maps [x1..x4] (or of the `stages` asked for), float32, of views in HU at the encoder's spacing, RAS+.

        Of a scan (a path, a Scan, ...) in place of views: the maps of the whole scan as it is prepared, B = 1; where each cell lies
        is in `dagman.encoder.embedding.map_scan`.

        x: int16 or float; stored values for MR. The intensity range is applied inside; sides that are no multiple of 32 are padded.
        A ViT interpolates its positions to views of other sides than it was trained on (`describe_positions`).
        Raises EncoderError for another shape, or values that are not finite.
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
        """The [CLS] token's attention (Eq. 1) of each head to the units of views as `features` takes them; rows sum to at most 1.

        Raises EncoderError when the encoder has no semantic attention.
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
        """Why features depend on the side of a view, in words; empty for a backbone without positions, and at the side trained on.

        side: of the views in voxels; None for views of various sides.
        """
        learned = self.network.encoder.view
        if not learned or side == learned:
            return ""
        others = f"views of {side}^3" if side else "other views"
        return f"its positions were learned for views of {learned}^3 voxels, and are interpolated for {others}"

    def pad_value(self, modality: Modality) -> int:
        """What lies outside a scan, as in training: air, or the lowest of the range."""
        return SCALED_RANGE[0] if modality == "MR" else AIR

    @cached_property
    def reader(self) -> ScanReader:
        """What reads and prepares scans for it."""
        preparation = Preparation(spacing=self.config.spacing, crop_body=self.config.crop_body)
        return ScanReader(preparation=preparation, modalities=self.config.modalities)

    def read(self, scan: ScanLike) -> Scan:
        """The scan as read, in its own grid, judged fit for this encoder (a stored one: as prepared).

        Raises ScanError when it cannot be used, EncoderError when the encoder was not trained on such scans.
        """
        return self.reader.read(scan)

    def prepare(self, scan: ScanLike) -> PreparedScan:
        """A scan as this encoder was trained on: upright, at its spacing, cropped to the body, int16. Raises as `read`."""
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
        """Feature vectors: of the whole scan; of the structure in a `mask`; or of the surroundings of each of N `points`.

        scan: one; or a list of paths, or a data frame with the column `scan`, for a data frame of features (see `embed_frame`).
        mask: a file or scan on the scan's grid, or a bool array of its shape; True inside. points: N x 3, RAS mm.
        label_map: a file, a Scan or an array of labels on the scan's grid, for a data frame with a row a label, its size and its
        features; of a data frame, its column of such files. labels: names by value, or a CSV with id and name.
        crop_mm, crop_spacing: side (mm) and voxel size (mm) of the crop around a structure or point; None: from its size.
        Raises ScanError for a scan that cannot be used, a mask on another grid, an empty mask, or a point outside.
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
        """Token grids of whole scans in the folder `out`, which opens by region; repeated, it goes on (`dagman embed --dense`).

        scans: paths, a store, or a data frame with the column `scan` (and `patient`). What cannot be used is in `out/rejected.csv`.
        Raises TaskError when nothing can be used, StoreError when `out` holds something else.
        """
        from dagman.encoder.inputs.dense_folders import fill_dense_folder

        return fill_dense_folder(self, scans, out, stages, dtype)

    def attention(self, scan: ScanLike) -> Attention:
        """What the [CLS] token attends to all over a scan, of each head and on average; see `Attention`."""
        from dagman.encoder.attention import attend_scan

        return attend_scan(self, scan)

    def _scale(self, x: Num[Tensor, "B 1 X Y Z"], modality: Modality) -> Float[Tensor, "B 1 X Y Z"]:
        """Views with intensities in [0, 1], on the device; raises as `features`."""
        if x.ndim != 5 or x.shape[1] != 1:
            raise EncoderError(f"a view is B 1 X Y Z, not {' x '.join(map(str, x.shape))}", do="Give x[None, None] for one volume")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise EncoderError("a view holds values that are not finite numbers", do="Fill them, with -1024 HU where there is air")
        low, high = SCALED_RANGE if modality == "MR" else (self.config.low, self.config.high)
        return to_unit_range(x.to(self.device), low, high)


def _is_several(scan: object) -> TypeGuard[list[str] | list[Path] | pd.DataFrame]:
    # By its name, so that pandas is loaded by those alone who use it.
    return isinstance(scan, list) or type(scan).__name__ == "DataFrame"
