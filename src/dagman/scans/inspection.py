"""What `dagman inspect` reports of one series: read it, judge it, keep a few numbers and one small picture."""

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
    """A verdict with what a reader wants to see beside it; fields are None where the series could not be read.

    `axes` are letters of the file's own axis order, `low` and `high` the lowest and highest value (HU for CT) after
    padding was clipped. `picture` is the middle axial slice, X Y in RAS+, in the scan's values.
    """

    source: str
    kind: str | None = None
    patient: str | None = None
    patient_from: str = ""
    modality: str | None = None
    size: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    axes: str | None = None
    low: float | None = None
    high: float | None = None
    accepted: bool = False
    reason: str = ""
    notes: tuple[str, ...] = ()
    picture: NDArray[np.int16] | None = field(default=None, repr=False)

    def to_row(self) -> dict[str, Any]:
        """The fields without the picture, ready for JSON."""
        row = asdict(self)
        del row["picture"]
        return row


def inspect_series(series: Series, *, picture: bool = True) -> Inspection:
    """Read and judge a series; a series that cannot be read is an Inspection with the reason, never an error."""
    try:
        scan, evidence = read_measured(series)
        verdict = judge_scan(scan, evidence)
        shown = take_picture(scan) if verdict.accepted and picture else None
    except ScanError as error:
        return inspect_refusal(Refusal.from_error(series.source, error), kind=series.kind, patient=series.patient)
    except Exception as error:
        # Named, so that it can be reported, and the other series go on.
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
    """A row for what could not be read, or was refused before."""
    return Inspection(source=refusal.source, reason=refusal.reason, kind=kind, patient=patient)


def take_picture(scan: Scan) -> NDArray[np.int16]:
    """The middle axial slice (X Y, RAS+) with square pixels, at most 192 a side: HU of CT, else -32768 to 32767 over its range."""
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
