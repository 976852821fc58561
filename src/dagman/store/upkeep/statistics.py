"""What a store holds, in numbers, by its manifest alone; nothing of a person's age or name is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from dagman.store.manifest import ManifestRow, Store

_SHARES = ("tissue_share", "soft_tissue_share", "fat_share", "bone_share")
NO_KERNEL = "not stated"


def count_store(store: Store) -> dict[str, Any]:
    """Scans, patients, modalities, bytes, spacings and kernels of the sources, the body's extent in mm, shares of tissue.

    `before_spacings`: scans of earlier releases, of which neither spacing nor kernel was kept. Of numbers the least, quartiles and
    the greatest are given. Raises StoreError when the manifest cannot be read.
    """
    rows = store.rows
    patients = Counter(row.patient for row in rows)
    extents = np.array([np.multiply(row.shape, row.spacing) for row in rows], dtype=np.float64).reshape(-1, 3)
    sizes = np.array([row.shape for row in rows], dtype=np.float64).reshape(-1, 3)
    known = [row for row in rows if row.source_spacing is not None]
    spacings = np.array([row.source_spacing for row in known], dtype=np.float64).reshape(-1, 3)
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
        "source_spacing_mm": {axis: _spread(values) for axis, values in zip("xyz", spacings.T, strict=True)},
        "kernels": dict(sorted(Counter(row.kernel or NO_KERNEL for row in known).items(), key=lambda one: (-one[1], one[0]))),
        "before_spacings": len(rows) - len(known),
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
