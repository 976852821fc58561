"""What a store holds, in numbers, by its manifest alone; nothing of a person's age or name is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from dagman.store.manifest import ManifestRow, Store

_SHARES = ("tissue_share", "soft_tissue_share", "fat_share", "bone_share")
UNRECORDED = {
    "source_spacings": "spacings of the sources (dagman inspect lists them)",
    "kernels": "reconstruction kernels",
}


def count_store(store: Store) -> dict[str, Any]:
    """Scans, patients, modalities, bytes, the body's extent in mm, and which shares of CT are tissue, fat and bone.

    Of numbers the least, quartiles and the greatest are given. Raises StoreError when the manifest cannot be read.
    """
    rows = store.rows
    patients = Counter(row.patient for row in rows)
    extents = np.array([np.multiply(row.shape, row.spacing) for row in rows], dtype=np.float64).reshape(-1, 3)
    sizes = np.array([row.shape for row in rows], dtype=np.float64).reshape(-1, 3)
    return {
        "scans": len(rows),
        "patients": len(patients),
        "patients_assumed": len({row.patient for row in rows if row.patient_from == "assumed"}),
        "scans_per_patient": _spread(patients.values()),
        "modalities": dict(sorted(Counter(row.modality for row in rows).items())),
        "bytes": sum(row.size for row in rows),
        "spacing_mm": store.preparation.spacing,
        "megabytes_per_scan": _spread(row.size / 1e6 for row in rows),
        "voxels_xyz": {axis: _spread(sizes[:, index]) for index, axis in enumerate("xyz")},
        "body_extent_mm": {axis: _spread(extents[:, index]) for index, axis in enumerate("xyz")},
        "body_shares": {name: _spread(values) for name, values in _list_shares(rows).items()},
        "not_recorded": UNRECORDED,
    }


def _list_shares(rows: Iterable[ManifestRow]) -> dict[str, list[float]]:
    """Of each CT, as its verdict counted them: shares of all voxels that are tissue, soft tissue, fat and bone."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        for name in _SHARES:
            if row.hu_evidence and name in row.hu_evidence:
                shares.setdefault(name, []).append(float(row.hu_evidence[name]))
    return shares


def _spread(values: Iterable[float]) -> dict[str, float]:
    """Least, quartiles and greatest; empty where there is nothing."""
    numbers = np.fromiter((float(value) for value in values), dtype=np.float64)
    if not numbers.size:
        return {}
    names = ("least", "quarter", "median", "three_quarters", "greatest")
    return dict(zip(names, np.percentile(numbers, (0, 25, 50, 75, 100)).tolist(), strict=True))
