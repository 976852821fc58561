"""Map features to a plane by principal components, or by UMAP (McInnes et al. 2018; extra `cluster`)."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagman.errors import MissingExtraError, TaskError
from dagman.randomness import address
from dagman.records.counts import count_noun

Floats = NDArray[np.float64]

NEIGHBOURS = 15
"""UMAP's default, which the paper most likely used, as it does not state another value."""
CLOSENESS = 0.1
"""UMAP's minimum distance of points on the map; the default."""


def map_components(points: ArrayLike) -> Floats:
    """Compute the first two principal components, n 2; signs are chosen to make each one's largest absolute value positive."""
    points = np.asarray(points, dtype=np.float64)
    centred = points - points.mean(axis=0)
    left, spreads, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(points), 2))
    count = min(2, len(spreads))
    found[:, :count] = left[:, :count] * spreads[:count]
    signs = np.sign(found[np.abs(found).argmax(axis=0), [0, 1]])
    return found * np.where(signs == 0, 1, signs)


def count_neighbours(structures: int, asked: int) -> int:
    """Limit the number of UMAP's neighbours to that of the other structures."""
    return min(asked, structures - 1)


def map_neighbours(points: ArrayLike, *, neighbours: int = NEIGHBOURS, seed: int = 0) -> Floats:
    """Map points (n p) by UMAP, n 2: Euclidean, initialised from principal components, reproducible for a given seed.

    Raises:
        MissingExtraError: umap-learn is not installed.
        TaskError: There are fewer than four points or two neighbours, or UMAP's coordinates are not finite.
    """
    points = np.asarray(points, dtype=np.float64)
    if len(points) < 4:
        what = count_noun(len(points), "structure is too few for a map", "structures are too few for a map")
        raise TaskError(what, do="Give at least 4, preferably some dozens")
    if neighbours < 2:
        raise TaskError(f"{neighbours} neighbour is too few for a map", do="Use --neighbours 2 or more")
    distinct = len(np.unique(points, axis=0))
    refusal = TaskError(
        f"UMAP cannot map {len(points)} structures of which only {distinct} have different features",
        do="Use --map pca, or remove duplicates",
    )
    if distinct == 1:
        raise refusal
    with warnings.catch_warnings():
        # umap-learn and numba emit deprecation warnings that users can do nothing about.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ImportError:
            raise MissingExtraError("umap-learn", "cluster") from None
        model = UMAP(
            n_neighbors=count_neighbours(len(points), neighbours),
            min_dist=CLOSENESS,
            init="pca",
            random_state=address(seed, "umap") % 2**31,
            n_jobs=1,
        )
        placed = np.asarray(model.fit_transform(points), dtype=np.float64)
    if not np.isfinite(placed).all():
        raise refusal
    return placed
