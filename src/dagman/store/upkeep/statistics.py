"""Summarises the content of a store in numbers, from its manifest; it has no age or name of a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from dagman.store.manifest import ManifestRow, Store

_SHARES = ("tissue_share", "soft_tissue_share", "fat_share", "bone_share")
NO_KERNEL = "not stated"


def count_store(store: Store) -> dict[str, Any]:
    """Count scans, patients and modalities, and summarise sizes, original spacings and kernels, body extents and tissue shares.

    Distributions are given by minimum, quartiles and maximum. `before_spacings` counts scans of earlier versions, for which neither
    spacing nor kernel was recorded.

    Raises:
        StoreError: if the manifest cannot be read.
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
        "scans_per_patient": _summarise(patients.values()),
        "modalities": dict(sorted(Counter(row.modality for row in rows).items())),
        "bytes": sum(row.size for row in rows),
        "spacing_mm": store.preparation.spacing,
        "megabytes_per_scan": _summarise(row.size / 1e6 for row in rows),
        "voxels_xyz": {axis: _summarise(sizes[:, index]) for index, axis in enumerate("xyz")},
        "body_extent_mm": {axis: _summarise(extents[:, index]) for index, axis in enumerate("xyz")},
        "body_shares": {name: _summarise(values) for name, values in _list_shares(rows).items()},
        "source_spacing_mm": {axis: _summarise(values) for axis, values in zip("xyz", spacings.T, strict=True)},
        "kernels": dict(sorted(Counter(row.kernel or NO_KERNEL for row in known).items(), key=lambda entry: (-entry[1], entry[0]))),
        "before_spacings": len(rows) - len(known),
    }


def _list_shares(rows: Iterable[ManifestRow]) -> dict[str, list[float]]:
    """List the shares of voxels that are tissue, soft tissue, fat and bone, over all CTs, from the evidence of their verdicts."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        for name in _SHARES:
            if row.hu_evidence and name in row.hu_evidence:
                shares.setdefault(name, []).append(float(row.hu_evidence[name]))
    return shares


def _summarise(values: Iterable[float]) -> dict[str, float]:
    """Return minimum, quartiles and maximum; {} if there are no values."""
    numbers = np.fromiter((float(value) for value in values), dtype=np.float64)
    if not numbers.size:
        return {}
    names = ("least", "quarter", "median", "three_quarters", "greatest")
    return dict(zip(names, np.percentile(numbers, (0, 25, 50, 75, 100)).tolist(), strict=True))
