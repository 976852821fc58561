"""Inspects one series for `dagman inspect`: reads it, judges it, and keeps a few numbers and a small picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.scans.discovery import Refusal, Series
from dagman.scans.faults import describe_own_fault
from dagman.scans.reading import read_measured
from dagman.scans.scan import Scan, reorient_scan
from dagman.scans.verdict import judge_scan

_PICTURE_PIXELS = 192


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The verdict on a series and the properties shown with it; they are None if the series could not be read."""

    source: str
    kind: str | None = None
    patient: str | None = None
    patient_from: str = ""
    modality: str | None = None
    size: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    axes: str | None = None
    "Letters of the file's own axis order, such as LPS."
    low: float | None = None
    "Lowest value after clipping of padding (HU for CT)."
    high: float | None = None
    "Highest value (HU for CT)."
    accepted: bool = False
    reason: str = ""
    "Why the series was refused, and what to do."
    notes: tuple[str, ...] = ()
    picture: NDArray[np.int16] | None = field(default=None, repr=False)
    "The middle axial slice (see `take_picture`)."

    def to_row(self) -> dict[str, Any]:
        """Return the fields without the picture, ready for JSON."""
        row = asdict(self)
        del row["picture"]
        return row


def inspect_series(series: Series, *, picture: bool = True) -> Inspection:
    """Read and judge a series. It never raises: for a series that cannot be read, the result has the reason."""
    try:
        scan, evidence = read_measured(series)
        verdict = judge_scan(scan, evidence)
        shown = take_picture(scan) if verdict.accepted and picture else None
    except ScanError as error:
        return inspect_refusal(Refusal.from_error(series.source, error), kind=series.kind, patient=series.patient)
    except Exception as error:
        # One bug must not stop the inspection of the other series, and its reason can be reported.
        reason = f"cannot be checked ({describe_own_fault(error)})"
        if isinstance(error, MemoryError):
            reason = "too large for memory: try again with --workers 1"
        return inspect_refusal(Refusal(source=series.source, reason=reason), kind=series.kind, patient=series.patient)
    x, y, z = scan.spacing
    return Inspection(
        source=series.source,
        kind=series.kind,
        patient=scan.patient,
        patient_from=series.patient_from,
        modality=scan.modality,
        size=scan.shape,
        spacing_mm=(round(x, 4), round(y, 4), round(z, 4)),
        axes=scan.affine.axis_codes,
        low=float(scan.voxels.min()),
        high=float(scan.voxels.max()),
        accepted=verdict.accepted,
        reason=verdict.reason,
        notes=verdict.notes,
        picture=shown,
    )


def inspect_refusal(refusal: Refusal, *, kind: str | None = None, patient: str | None = None) -> Inspection:
    """Return the inspection of a source that was refused or could not be read."""
    return Inspection(source=refusal.source, reason=refusal.reason, kind=kind, patient=patient)


def take_picture(scan: Scan) -> NDArray[np.int16]:
    """Return the middle axial slice (X Y, RAS+) with square pixels, at most 192 per side.

    Values are HU for CT; other values are scaled so that the slice's range becomes -32768 to 32767.
    """
    upright = reorient_scan(scan)
    middle = upright.voxels[:, :, upright.shape[2] // 2].astype(np.float32)
    extent = np.array(middle.shape) * upright.spacing[:2]
    sides = np.maximum(np.rint(extent / extent.max() * _PICTURE_PIXELS), 1).astype(int)
    columns, rows = (((np.arange(side) + 0.5) * size / side).astype(int) for side, size in zip(sides, middle.shape, strict=True))
    shown = middle[np.ix_(columns, rows)]
    limits = np.iinfo(np.int16)
    if scan.modality != "CT":
        low, high = float(shown.min()), float(shown.max())
        shown = limits.min + (shown - low) / max(high - low, 1e-6) * (limits.max - limits.min)
    return np.rint(np.clip(shown, limits.min, limits.max)).astype(np.int16)
