"""What a run learns from: the numbers of scans and patients, and the scans that are copies of one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dagman.store.manifest import ManifestRow, Store

SAME_SHARES = 0.02
"""Relative difference of the shares of air, fat and soft tissue up to which two scans of the same shape are compared. [ours]"""
SAME_HU = 2.0
"""Median difference in HU below which two scans are copies: saving again rounds by 1 HU, noise differs by 10 or more. [ours]"""
_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Numbers of scans and patients, and groups of the ids of scans that are copies of one another."""

    scans: int
    patients: int
    copies: tuple[tuple[str, ...], ...] = ()


def describe_cohort(store: Store, usable: Sequence[str]) -> Cohort:
    """Count the scans of a store that a run uses, and find the copies among them.

    Raises:
        StoreError: A scan that has to be compared is missing or damaged.
    """
    rows = [store.row(scan) for scan in usable]
    return Cohort(scans=len(rows), patients=len({row.patient for row in rows}), copies=_find_copies(store, rows))


def _find_copies(store: Store, rows: Iterable[ManifestRow]) -> tuple[tuple[str, ...], ...]:
    """Groups of scans with the same voxels except for rounding, whatever their place and patient.

    Only neighbours in the order of shape and tissue are read, and only if these agree: in most cohorts none.
    """
    groups: list[list[str]] = []
    for one, other in pairwise(sorted(rows, key=lambda row: (row.modality, row.shape, _list_shares(row), row.id))):
        if (one.modality, one.shape) != (other.modality, other.shape) or not _is_same_scan(store, one, other):
            continue
        if groups and groups[-1][-1] == one.id:
            groups[-1].append(other.id)
        else:
            groups.append([one.id, other.id])
    return tuple(tuple(sorted(group)) for group in groups)


def _is_same_scan(store: Store, one: ManifestRow, other: ManifestRow) -> bool:
    if one.checksum == other.checksum:
        return True
    if not np.allclose(_list_shares(one), _list_shares(other), rtol=SAME_SHARES, atol=0.001):
        return False
    size = [min(_SIDE, extent) for extent in one.shape]
    start = [(extent - side) // 2 for extent, side in zip(one.shape, size, strict=True)]
    a, b = (store.crop(row.id, start, size).astype(np.float32) for row in (one, other))
    # Clipped air is the same everywhere, so two crops that hold nothing else are not copies.
    tissue = (a > a.min()) | (b > b.min())
    return bool(tissue.any()) and float(np.median(np.abs(a - b)[tissue])) < SAME_HU


def _list_shares(row: ManifestRow) -> tuple[float, ...]:
    return tuple(value for name, value in sorted((row.hu_evidence or {}).items()) if name in _COMPARED)


_COMPARED = frozenset({"air_share", "fat_share", "soft_tissue_share"})
