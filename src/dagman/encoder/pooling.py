"""Feature maps to one vector: mean, standard deviation and maximum of each stage, over what lies inside a mask.

METHOD, Probes: what is read matters more than minutes of pretraining; pooling a whole view was chance for nodules, pooling
x1 inside the mask was not. A mask is brought to a stage's grid as coverage: the share of each cell that lies inside. A cell
that a structure merely touches counts for that share, so even the smallest structure has a cell at every stage.

Letters: C channels, x y z a stage's grid, K cells inside.
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
    """What is read out of the feature maps: which stages, and which of mean, std and max. [ours; METHOD, Probes]

    Raises SettingsError for a stage or pool there is not.
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
    """Names of the features, in the order of `pool_features`: stage, pool, channel; "x1_mean_000" first."""
    kinds = [(stage, pool) for stage in pooling.stages for pool in pooling.pools]
    return [f"x{stage}_{pool}_{channel:03d}" for stage, pool in kinds for channel in range(widths[stage - 1])]


def cover_cells(inside: Bool[Tensor, "X Y Z"], grid: Sequence[int]) -> Float[Tensor, "x y z"]:
    """The share of each cell of a stage's grid that lies inside; the sides of `inside` are multiples of the grid's."""
    strides = [side // cells for side, cells in zip(inside.shape, grid, strict=True)]
    return torch.nn.functional.avg_pool3d(inside[None, None].float(), strides)[0, 0]


def pool_features(maps: Sequence[Float[Tensor, "C x y z"]], inside: Bool[Tensor, "X Y Z"], pooling: Pooling) -> NDArray[np.float32]:
    """One vector of the maps of the stages of `pooling`, in their order.

    mean and std are weighted by coverage (std of the population), max is over the cells touched.
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
        # float64: the spread of a channel may be a thousandth of its mean.
        cells = features.cpu()[:, touched].double()
        weights = coverage[touched].double()
        weights = weights / weights.sum()
        mean = cells @ weights
        variance = (cells - mean[:, None]).square() @ weights
        pooled = {"mean": mean, "std": variance.sqrt(), "max": cells.amax(dim=1)}
        parts += [pooled[pool] for pool in pooling.pools]
    return torch.cat(parts).float().numpy()
