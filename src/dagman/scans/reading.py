"""Reads a series of any format as a scan: decodes and checks it, determines the modality, clips padding."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.scans.affine import Affine
from dagman.scans.archives import show_place
from dagman.scans.dicom.tilt import measure_tilt, straighten_grid
from dagman.scans.discovery import WIDEST_GAP_MM, Series, Tilt, find_series
from dagman.scans.faults import explain_faults
from dagman.scans.formats import FORMATS, find_format
from dagman.scans.pseudonyms import name_file
from dagman.scans.scan import Modality, Scan, narrow_voxels
from dagman.scans.verdict import LOWEST_HU, HuEvidence, clip_evidence, clip_padding, judge_modality, measure_hu

_SKEW_TOLERANCE_DEGREES = 0.5
"""The same tolerance as for DICOM, above which a tilted gantry is assumed."""

_STEEPEST_DEGREES = 45.0
"""Gantries tilt by at most 30 degrees. A larger tilt means a damaged header, and the resampled grid might not fit into memory."""


def read_scan(
    path: str | Path,
    *,
    modality: Modality | None = None,
    tilt: Tilt = "resample",
    widest_gap: float = WIDEST_GAP_MM,
    labels: bool = False,
) -> Scan:
    """Read one series as a scan (`dagman.read`).

    Args:
        path: a file, a folder with exactly one usable series, or `folder#uid`. A DICOM file stands for its whole volume: the other
            files of its series in the same folder are read as well.
        modality: overrides the modality stated in the file.
        tilt: "resample" or "refuse" slices of a tilted gantry.
        widest_gap: distance between slices (mm) up to which uneven or missing slices are interpolated.
        labels: whether the values are labels; see `read_series`.

    Raises:
        ScanError: if there is no usable series, or more than one (the message names them).
    """
    path = Path(path)
    known = find_format(path) if labels else None
    if known is not None and known.is_file and os.path.isfile(path):
        # Without `find_series`, which refuses single slices: a label map may be cropped to one.
        single = Series(kind=known.name, files=(path,), source=str(path), modality=modality, tilt=tilt, widest_gap=widest_gap)
        return read_series(single, labels=True)
    discovered = find_series(path, modality=modality, tilt=tilt, widest_gap=widest_gap)
    if len(discovered.series) == 1:
        return read_series(discovered.series[0], labels=labels)
    if discovered.series:
        names = ", ".join(series.source for series in discovered.series[:5])
        more = f" and {len(discovered.series) - 5} more" if len(discovered.series) > 5 else ""
        raise ScanError(f"holds {len(discovered.series)} series: {names}{more}", where=path, do="Give the name of one of them")
    # os.path.isfile, since path.is_file() raises if a parent folder cannot be entered.
    if len(discovered.refused) == 1 or os.path.isfile(path):
        raise ScanError(discovered.refused[0].reason, where=discovered.refused[0].source)
    first = discovered.refused[0]
    raise ScanError(f"contains no usable series; {len(discovered.refused)} refused, the first: {first.reason}", where=path)


def read_series(series: Series, *, labels: bool = False) -> Scan:
    """Decode a series as a scan; whether the scan is usable is decided by `verdict.judge_scan`.

    Voxels are int16 if that is exact, otherwise float32; CT is in HU with padding clipped at -1024. Slices of a tilted gantry, or
    the sheared grid that a converter makes of them, are resampled to an orthogonal grid unless `series.tilt` refuses them. Uneven
    slices are interpolated to even ones if no gap is wider than `series.widest_gap`. Both are noted.

    Args:
        series: the series, as found by `find_series`.
        labels: whether the values are labels, which must not be interpolated, and which may have a single slice.

    Raises:
        ScanError: if the files cannot be read or do not form a volume, values are NaN, or a gap is too wide.
    """
    return read_measured(series, labels=labels)[0]


def read_measured(series: Series, *, labels: bool = False) -> tuple[Scan, HuEvidence | None]:
    """Read a series like `read_series`, and return also the evidence for `judge_scan`; None if the grid was resampled."""
    with explain_faults("cannot be read", where=series.source, do="Convert or export it again, or exclude it"):
        try:
            return _read_series(series, labels)
        except ScanError as error:
            shown = None if error.where is None else str(show_place(error.where))
            if shown in (None, str(error.where)):
                raise
            # For a file from an archive, name its place in the archive instead of the temporary folder.
            raise ScanError(error.what, where=shown, do=error.do) from error


def _read_series(series: Series, labels: bool) -> tuple[Scan, HuEvidence | None]:
    raw = FORMATS[series.kind].read(series)
    if not labels and min(raw.values.shape) < 2:
        shown = " x ".join(map(str, raw.values.shape))
        raise ScanError(f"is one slice ({shown})", where=series.source, do="Give a volume of at least 2 slices")
    _check_finite(raw.values, series.source)
    tilted = _find_tilt(raw.affine, series)
    voxels, affine = narrow_voxels(raw.values), raw.affine
    evidence = measure_hu(voxels)
    modality = series.modality or judge_modality(evidence)
    notes = (*series.notes, *raw.notes)
    if modality == "CT":
        voxels, clipped = clip_padding(voxels, evidence.minimum)
        evidence, notes = clip_evidence(evidence), (*notes, *clipped)
    if tilted:
        axis, angle = tilted
        fill = LOWEST_HU if modality == "CT" and not labels else min(0.0, float(voxels.min()))
        voxels, affine = straighten_grid(voxels, affine, axis, fill=fill, nearest=labels)
        notes = (*notes, f"the gantry was tilted by {angle:.1f} degrees; its slices were resampled to an orthogonal grid")
    scan = Scan(
        voxels=voxels,
        affine=affine,
        modality=modality,
        patient=series.patient or name_file(series.files[0]),
        source=series.source,
        notes=notes,
    )
    return scan, None if tilted else evidence


def _find_tilt(affine: Affine, series: Series) -> tuple[int, float] | None:
    """Return the slice axis and angle of a tilted gantry, or None for an orthogonal grid; raises ScanError for other shears."""
    if affine.skew <= _SKEW_TOLERANCE_DEGREES:
        return None
    tilted = measure_tilt(affine)
    if tilted is not None and series.tilt == "resample" and tilted[1] <= _STEEPEST_DEGREES:
        return tilted
    # If it were treated as orthogonal, the body would appear slanted.
    what = f"its axes are {affine.skew:.1f} degrees from perpendicular (a tilted gantry?)"
    raise ScanError(what, where=series.source, do="Resample it to an orthogonal grid, or exclude it")


def _check_finite(values: NDArray, source: str) -> None:
    if not np.issubdtype(values.dtype, np.floating):
        return
    # A float64 value may become infinite when converted to float32.
    is_finite = np.isfinite(values) if values.dtype.itemsize <= 4 else np.abs(values) <= np.finfo(np.float32).max
    count = values.size - int(np.count_nonzero(is_finite))
    if count:
        what = f"{count} of {values.size} voxels are NaN or infinite"
        raise ScanError(what, where=source, do="Replace them (outside the scanner's field: -1024), or exclude the scan")
