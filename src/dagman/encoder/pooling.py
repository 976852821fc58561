"""Pool feature maps to one vector: mean, standard deviation and maximum of each stage inside a mask.

The choice of pooling matters more than minutes of pretraining: for nodules, pooling over the whole view was at chance level, but
pooling x1 inside the mask was not (METHOD, Probes). A mask is resampled to the grid of a stage as coverage, the fraction of each
cell that lies inside. Cells are weighted by their coverage, so even the smallest structure has a cell at every stage.

Notation: C channels, x y z the grid of a stage, K cells inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from dagman.errors import SettingsError
from dagman.records.names import suggest_name

STAGES = (1, 2, 3, 4)
POOLS = ("mean", "std", "max")


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Which stages and statistics of the feature maps are used. [ours; METHOD, Probes]

    Attributes:
        stages: Stages, from 1 to 4.
        pools: Statistics: "mean", "std", "max".

    Raises:
        SettingsError: A stage or statistic does not exist, or none was given.
    """

    stages: tuple[int, ...] = STAGES
    pools: tuple[str, ...] = POOLS

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise SettingsError(f"there is no stage {stage}", do=f"Choose among {', '.join(map(str, STAGES))}")
        for pool in self.pools:
            if pool not in POOLS:
                raise SettingsError(f"there is no statistic {pool!r} to pool", do=suggest_name(pool, POOLS))
        if not self.stages or not self.pools:
            raise SettingsError("nothing would be pooled", do="Choose at least one stage and one statistic")


def name_columns(pooling: Pooling, widths: Sequence[int]) -> list[str]:
    """List the names of features in the order of `pool_features`: by stage, statistic and channel, from "x1_mean_000"."""
    kinds = [(stage, pool) for stage in pooling.stages for pool in pooling.pools]
    return [f"x{stage}_{pool}_{channel:03d}" for stage, pool in kinds for channel in range(widths[stage - 1])]


def cover_cells(inside: Bool[Tensor, "X Y Z"], grid: Sequence[int]) -> Float[Tensor, "x y z"]:
    """Compute the fraction of each cell that lies inside a mask, whose sides are multiples of those of the grid."""
    strides = [side // cells for side, cells in zip(inside.shape, grid, strict=True)]
    return torch.nn.functional.avg_pool3d(inside[None, None].float(), strides)[0, 0]


def pool_features(maps: Sequence[Float[Tensor, "C x y z"]], inside: Bool[Tensor, "X Y Z"], pooling: Pooling) -> NDArray[np.float32]:
    """Pool maps to one vector.

    Mean and (population) standard deviation are weighted by coverage; the maximum is over all cells with any coverage.

    Args:
        maps: A map for each stage of `pooling`, in that order.
        inside: The mask.
        pooling: Stages and statistics.

    Raises:
        ValueError: The mask is empty, or the number of maps is wrong.
    """
    if len(maps) != len(pooling.stages):
        raise ValueError(f"{len(maps)} maps for the stages {pooling.stages}")
    inside = inside.cpu()
    parts = []
    for features in maps:
        coverage = cover_cells(inside, features.shape[1:])
        touched = coverage > 0
        if not touched.any():
            raise ValueError("the mask contains no token")
        # float64, because the standard deviation of a channel may be a thousandth of its mean.
        cells = features.cpu()[:, touched].double()
        weights = coverage[touched].double()
        weights = weights / weights.sum()
        mean = cells @ weights
        variance = (cells - mean[:, None]).square() @ weights
        pooled = {"mean": mean, "std": variance.sqrt(), "max": cells.amax(dim=1)}
        parts += [pooled[pool] for pool in pooling.pools]
    return torch.cat(parts).float().numpy()
