"""Builds nodules from the readers' annotations: consensus voxels, ratings, size and centre."""

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
    """The readers' consensus on one nodule."""

    voxels: np.ndarray
    "N 3: indices of the voxels that at least half of the readers marked."
    center_mm: tuple[float, float, float]
    "Centroid in RAS mm."
    diameter_mm: float
    "Longest extent within a slice."
    volume_ml: float
    readers: int
    "Number of readers who outlined the nodule."
    ratings: dict[str, float]
    "Median over readers, by trait; if a reader split the nodule, the mean of the parts counts once."
    malignancy_mean: float


def find_nodules(annotations: Sequence[Annotation], grid: Grid) -> list[Nodule]:
    """Build all nodules of a scan, ordered along its slices.

    Raises:
        TableError: if an outline does not fit the scan.
    """
    drawn = [draw_annotation(annotation, grid) for annotation in annotations]
    positions = [grid.affine.to_world(_unravel(voxels, grid)) for voxels in drawn]
    reach = max(grid.affine.spacing)
    groups = group_annotations([annotation.reader for annotation in annotations], drawn, positions, reach)
    nodules = [_build_nodule([(annotations[i], drawn[i]) for i in group], grid) for group in groups]
    return sorted(nodules, key=lambda nodule: nodule.center_mm[::-1])


def _build_nodule(readings: Sequence[tuple[Annotation, np.ndarray]], grid: Grid) -> Nodule:
    by_reader: dict[int, list[tuple[Annotation, np.ndarray]]] = defaultdict(list)
    for annotation, voxels in readings:
        by_reader[annotation.reader].append((annotation, voxels))
    regions = [np.unique(np.concatenate([voxels for _, voxels in parts])) for parts in by_reader.values()]
    marked, votes = np.unique(np.concatenate(regions), return_counts=True)
    # If the readers' outlines hardly overlap, no voxel reaches half of the votes: then take those with the most votes.
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
    """Return the longest extent (mm) within a slice of voxels (N 3), measured between the outer edges of pixels."""
    longest = 0.0
    for slice_index in np.unique(voxels[:, 2]):
        inside = voxels[voxels[:, 2] == slice_index, :2]
        # The two ends of each column suffice, as no other pixel of the column can be farther from any pixel.
        columns, first = np.unique(inside[:, 0], return_inverse=True)
        low, high = np.full(len(columns), inside[:, 1].max()), np.full(len(columns), inside[:, 1].min())
        np.minimum.at(low, first, inside[:, 1])
        np.maximum.at(high, first, inside[:, 1])
        ends = np.concatenate([np.column_stack([columns, low]), np.column_stack([columns, high])]) * spacing[:2]
        longest = max(longest, float(pdist(ends).max()))
    return longest + min(spacing[:2])


def _unravel(flat: np.ndarray, grid: Grid) -> np.ndarray:
    return np.column_stack(np.unravel_index(flat, grid.shape))
