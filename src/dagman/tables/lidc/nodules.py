"""Groups of readings to nodules: voxels that half of the readers agree on, median and mean ratings, size, centre."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist

from dagman.tables.lidc.annotations import TRAITS, Annotation
from dagman.tables.lidc.grouping import group_annotations
from dagman.tables.lidc.outlines import Grid, draw_annotation


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """What the readers together say of one nodule.

    `voxels` N 3 are indices of the consensus; `center_mm` is its centroid in RAS mm; `diameter_mm` its longest extent within a
    slice; `volume_ml` its volume. `ratings` has the median over readers of each trait; a reader's parts count once, by their mean.
    """

    voxels: np.ndarray
    center_mm: tuple[float, float, float]
    diameter_mm: float
    volume_ml: float
    readers: int
    ratings: dict[str, float]
    malignancy_mean: float


def find_nodules(annotations: Sequence[Annotation], grid: Grid) -> list[Nodule]:
    """All nodules of a scan, ordered along its slices. Raises TableError for outlines that do not fit the scan."""
    drawn = [draw_annotation(annotation, grid) for annotation in annotations]
    places = [grid.affine.to_world(_unravel(voxels, grid)) for voxels in drawn]
    reach = max(grid.affine.spacing)
    groups = group_annotations([annotation.reader for annotation in annotations], drawn, places, reach)
    nodules = [_build_nodule([(annotations[i], drawn[i]) for i in group], grid) for group in groups]
    return sorted(nodules, key=lambda nodule: nodule.center_mm[::-1])


def _build_nodule(readings: Sequence[tuple[Annotation, np.ndarray]], grid: Grid) -> Nodule:
    by_reader: dict[int, list[tuple[Annotation, np.ndarray]]] = defaultdict(list)
    for annotation, voxels in readings:
        by_reader[annotation.reader].append((annotation, voxels))
    regions = [np.unique(np.concatenate([voxels for _, voxels in parts])) for parts in by_reader.values()]
    marked, votes = np.unique(np.concatenate(regions), return_counts=True)
    # Readers who do not meet at all leave nothing at half; then what most of them share.
    agreed = _unravel(marked[votes >= min(len(regions) / 2, votes.max())], grid)
    rated: dict[str, list[float]] = defaultdict(list)
    for parts in by_reader.values():
        for trait in TRAITS.values():
            values = [annotation.ratings[trait] for annotation, _ in parts if trait in annotation.ratings]
            if values:
                rated[trait].append(float(np.mean(values)))
    x, y, z = grid.affine.to_world(agreed.mean(0)[None])[0]
    return Nodule(
        voxels=agreed,
        center_mm=(float(x), float(y), float(z)),
        diameter_mm=measure_diameter(agreed, grid.affine.spacing),
        volume_ml=float(len(agreed) * np.prod(grid.affine.spacing) / 1000),
        readers=len(by_reader),
        ratings={trait: float(np.median(values)) for trait, values in rated.items()},
        malignancy_mean=float(np.mean(rated["malignancy"])),
    )


def measure_diameter(voxels: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """The longest distance (mm) between two voxels (N 3) of one slice, and one pixel more: from edge to edge."""
    longest = 0.0
    for place in np.unique(voxels[:, 2]):
        inside = voxels[voxels[:, 2] == place, :2]
        # Of each column the two ends suffice: no other pixel can be farther from anything.
        columns, first = np.unique(inside[:, 0], return_inverse=True)
        low, high = np.full(len(columns), inside[:, 1].max()), np.full(len(columns), inside[:, 1].min())
        np.minimum.at(low, first, inside[:, 1])
        np.maximum.at(high, first, inside[:, 1])
        ends = np.concatenate([np.column_stack([columns, low]), np.column_stack([columns, high])]) * spacing[:2]
        longest = max(longest, float(pdist(ends).max()))
    return longest + min(spacing[:2])


def _unravel(flat: np.ndarray, grid: Grid) -> np.ndarray:
    return np.column_stack(np.unravel_index(flat, grid.shape))
