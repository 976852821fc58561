"""Estimates the cost of preparing scans from their headers, before the work starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dagman.errors import ScanError
from dagman.scans.discovery import Series
from dagman.scans.faults import explain_faults
from dagman.scans.formats import FORMATS
from dagman.store.preparation import Preparation
from dagman.store.resampling import MOST_VOXELS

SAMPLED = 40
"""Number of evenly spread series whose headers are read; the others are assumed to be similar."""
BYTES_PER_VOXEL = 1.0
"""In the store, measured on chest CT at 2 mm: 1.2 bytes compressed, times 0.8 of the grid left after the crop to the body."""
SECONDS_PER_SOURCE_VOXEL, SECONDS_PER_STORED_VOXEL = 12e-9, 30e-9
"""On one core (BASELINES 4): decoding, hashing and resampling; cropping and packing."""
_MOST_MM3 = 8e9
"""A cube of 2 m, which is larger than any scanner's field of view."""
SECONDS_TO_START = 2.0
"""Time in which a worker process imports its libraries."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated cost of a preparation."""

    series: int
    "Number of series to prepare."
    done: int
    "Number of series that are in the store already."
    bytes: int
    "Size of the files to be written."
    seconds: float
    free_bytes: int
    "Free space on the disk."
    workers: int


def estimate_cost(series: Sequence[Series], done: int, store: Path, preparation: Preparation, workers: int) -> Estimate:
    """Estimate the cost of preparing series, to about a factor of two; on a busy machine, other processes are considered."""
    sample = series[:: max(1, len(series) // SAMPLED)]
    sizes = [size for size in map(_measure_series, sample) if size is not None]
    source, volume = np.mean(sizes, axis=0) * len(series) if sizes else (0.0, 0.0)
    stored = volume / preparation.spacing**3
    seconds = (source * SECONDS_PER_SOURCE_VOXEL + stored * SECONDS_PER_STORED_VOXEL) / workers
    return Estimate(
        series=len(series),
        done=done,
        bytes=int(stored * BYTES_PER_VOXEL),
        seconds=(seconds + (SECONDS_TO_START if workers > 1 else 0.0)) * measure_crowding(workers),
        free_bytes=shutil.disk_usage(store).free,
        workers=workers,
    )


def measure_crowding(workers: int) -> float:
    """Return the factor by which other processes of the last minute slow down this many workers; 1 if enough cores are idle."""
    try:
        busy = os.getloadavg()[0]
    except (AttributeError, OSError):
        return 1.0
    return max(1.0, (busy + workers) / (os.cpu_count() or 1))


def _measure_series(series: Series) -> tuple[float, float] | None:
    """Return (voxels, mm^3) from the header; None if that fails, the reason for which the preparation reports."""
    try:
        with explain_faults("cannot be measured", where=series.source, do="Exclude it"):
            shape, spacing = FORMATS[series.kind].measure(series)
    except ScanError:
        return None
    voxels = float(np.prod(np.asarray(shape[:3], dtype=np.float64)))
    volume = voxels * float(np.prod(np.abs(np.asarray(spacing[:3], dtype=np.float64))))
    # A single damaged header must not turn the estimate into terabytes.
    return (voxels, volume) if voxels < MOST_VOXELS and volume < _MOST_MM3 else None
