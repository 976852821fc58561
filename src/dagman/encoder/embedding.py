"""Compute feature vectors of scans, of structures in them, and of the surroundings of points.

A whole scan is processed at the encoder's own spacing. For a structure or a point, a crop around it is resampled to a spacing that
suits its size, and features are pooled inside the structure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dagman.encoder.encoder import Encoder
from dagman.encoder.pooling import Pooling, name_columns, pool_features
from dagman.encoder.reader import ScanLike
from dagman.encoder.tiling import Tiling, mark_scan, plan_pass, sliding_window_inference
from dagman.errors import ScanError
from dagman.records.names import suggest_name
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan
from dagman.store.crops import FROM_SIZE, Crop, CropSpec, choose_crop, cut_structure, cut_surroundings, measure_extent
from dagman.store.preparation import PreparedScan
from dagman.tables.items import Item, align_mask, read_mask, refuse_fractions, select_structure


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """Feature vectors.

    Attributes:
        values: N x C, with one row for the scan or structure, or one row per point.
        columns: Names of the C features.
    """

    values: NDArray[np.float32] = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)

    def column(self, name: str) -> NDArray[np.float32]:
        """Return one feature of all rows, such as "x1_mean_000".

        Raises:
            KeyError: There is no such feature; the message suggests the most similar name.
        """
        if name not in self.columns:
            raise KeyError(f"no feature {name!r}. {suggest_name(name, self.columns)}")
        return self.values[:, self.columns.index(name)]

    def __repr__(self) -> str:
        return f"Embedding({' x '.join(map(str, self.values.shape))}, {self.columns[0]} to {self.columns[-1]})"


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureMaps:
    """Dense features of a whole scan. Cells at the border extend into the padding, by up to one stride of the stage.

    Attributes:
        maps: A map C x y z for each stage.
        affines: Affine of each map, from cells to RAS mm of the scan.
        stages: The stages.
    """

    maps: tuple[Float[Tensor, "C x y z"], ...]
    affines: tuple[Affine, ...]
    stages: tuple[int, ...]


def embed_scan(
    encoder: Encoder,
    scan: ScanLike,
    mask: str | Path | Scan | NDArray[np.bool_] | None = None,
    points: ArrayLike | None = None,
    *,
    pooling: Pooling | None = None,
    crop: CropSpec = FROM_SIZE,
) -> Embedding:
    """Compute the features of a scan, of a structure, or around points; see `Encoder.embed`."""
    pooling = pooling or Pooling()
    columns = tuple(list_columns(encoder, pooling))
    if mask is not None and points is not None:
        raise ScanError("both a mask and points were given", do="Give one of them")
    if mask is None and points is None:
        vector = pool_scan(encoder, encoder.prepare(scan), pooling)
        return Embedding(values=vector[None], columns=columns)
    opened = encoder.read(scan)
    coarsest = encoder.config.spacing
    if mask is not None:
        inside = _place_mask(mask, opened)
        shape = choose_crop(measure_extent(inside, opened.spacing), crop, coarsest=coarsest)
        crops = [cut_structure(opened, inside, shape)]
    else:
        shape = choose_crop(None, crop, coarsest=coarsest)
        crops = [cut_surroundings(opened, point, shape) for point in np.reshape(np.asarray(points, dtype=np.float64), (-1, 3))]
    return Embedding(values=pool_crops(encoder, crops, pooling), columns=columns)


def list_columns(encoder: Encoder, pooling: Pooling) -> list[str]:
    """List the names of the features for an encoder and pooling."""
    return name_columns(pooling, encoder.network.encoder.widths)


def list_stage_ends(encoder: Encoder, pooling: Pooling | None = None) -> tuple[int, ...]:
    """Count the features from the first stage, from the first two stages, and so on; the last count is the total."""
    pooling = pooling or Pooling()
    counts = [len(pooling.pools) * encoder.network.encoder.widths[stage - 1] for stage in pooling.stages]
    return tuple(itertools.accumulate(counts))


def pool_scan(encoder: Encoder, prepared: PreparedScan, pooling: Pooling) -> NDArray[np.float32]:
    """Compute the vector (C) of a whole prepared scan; padding is excluded."""
    tiling = _plan(encoder, prepared)
    return pool_features(_map_prepared(encoder, prepared, tiling, pooling.stages), mark_scan(tiling), pooling)


def pool_crops(encoder: Encoder, crops: Sequence[Crop], pooling: Pooling) -> NDArray[np.float32]:
    """Compute the vectors (N C) of crops, which may have different sides, in batches of `encoder.batch`."""
    vectors = np.empty((len(crops), len(list_columns(encoder, pooling))), dtype=np.float32)
    alike: dict[tuple[int, str], list[int]] = {}
    for index, crop in enumerate(crops):
        alike.setdefault((crop.voxels.shape[0], crop.modality), []).append(index)
    for indices in alike.values():
        for first in range(0, len(indices), encoder.batch):
            chosen = indices[first : first + encoder.batch]
            views = torch.from_numpy(np.stack([crops[index].voxels for index in chosen]))[:, None]
            maps = encoder.features(views, modality=crops[chosen[0]].modality, stages=pooling.stages)
            for number, index in enumerate(chosen):
                inside = torch.from_numpy(crops[index].inside)
                vectors[index] = pool_features([features[number] for features in maps], inside, pooling)
    return vectors


def map_scan(encoder: Encoder, scan: ScanLike, stages: Sequence[int] = (1, 2, 3, 4)) -> FeatureMaps:
    """Compute dense features of a whole scan at the encoder's spacing."""
    prepared = encoder.prepare(scan)
    tiling = _plan(encoder, prepared)
    padded = prepared.affine.crop([-before for before in tiling.offset])
    strides = [encoder.network.encoder.strides[stage - 1] for stage in stages]
    return FeatureMaps(
        maps=tuple(_map_prepared(encoder, prepared, tiling, stages)),
        affines=tuple(padded.rescale((stride,) * 3) for stride in strides),
        stages=tuple(stages),
    )


def _plan(encoder: Encoder, prepared: PreparedScan) -> Tiling:
    return plan_pass(prepared.shape, encoder.config.view, encoder.network.encoder)


def _map_prepared(
    encoder: Encoder, prepared: PreparedScan, tiling: Tiling, stages: Sequence[int]
) -> list[Float[Tensor, "C x y z"]]:
    return sliding_window_inference(
        lambda tiles: encoder.features(tiles, modality=prepared.modality, stages=stages),
        prepared.voxels,
        tiling,
        fill=encoder.pad_value(prepared.modality),
        batch=encoder.batch,
    )


def _place_mask(mask: str | Path | Scan | NDArray[np.bool_], scan: Scan) -> NDArray[np.bool_]:
    """Convert a mask, given as a file, a scan or an array, to a boolean array on the grid of its scan."""
    path = Path(mask) if isinstance(mask, str | Path) else None
    item = Item(index=0, name="mask", scan=scan.source, patient=scan.patient, mask=path)
    if isinstance(mask, np.ndarray):
        if mask.shape != scan.shape:
            what = f"the mask has shape {' x '.join(map(str, mask.shape))}, the scan {' x '.join(map(str, scan.shape))}"
            raise ScanError(what, where=scan.source, do="Give the mask on the scan's own grid")
        refuse_fractions(item, mask)
        if not mask.any():
            raise ScanError("the mask is empty", where=scan.source, do="Mark the structure with True")
        return mask.astype(bool)
    if isinstance(mask, Scan):
        refuse_fractions(item, mask.voxels)
        return select_structure(item, align_mask(item, mask, scan))
    return select_structure(item, align_mask(item, read_mask(item), scan))
