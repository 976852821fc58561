"""A series to a scan: decode, check, name the modality, clip padding. The one place where all formats meet."""

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
"""As for DICOM, where the gantry's tilt is searched for."""

_STEEPEST_DEGREES = 45.0
"""No gantry tilts by more than 30 degrees; beyond, a header is damaged, and the straight grid might not fit into memory."""


def read_scan(
    path: str | Path,
    *,
    modality: Modality | None = None,
    tilt: Tilt = "resample",
    widest_gap: float = WIDEST_GAP_MM,
    labels: bool = False,
) -> Scan:
    """Read one series: a file, a folder that holds exactly one usable series, or `folder#uid` (`dagman.read`).

    A DICOM file stands for its whole volume: the files of the same series in its folder are read with it. `modality`
    overrides what the file says; `tilt`, `widest_gap`, `labels`: see `read_series`. Raises ScanError, naming the series when
    there are several.
    """
    path = Path(path)
    known = find_format(path) if labels else None
    if known is not None and known.is_file and os.path.isfile(path):
        # Not by `find_series`: it leaves out single slices, and a label map may be cropped to one.
        single = Series(kind=known.name, files=(path,), source=str(path), modality=modality, tilt=tilt, widest_gap=widest_gap)
        return read_series(single, labels=True)
    discovered = find_series(path, modality=modality, tilt=tilt, widest_gap=widest_gap)
    if len(discovered.series) == 1:
        return read_series(discovered.series[0], labels=labels)
    if discovered.series:
        names = ", ".join(series.source for series in discovered.series[:5])
        more = f" and {len(discovered.series) - 5} more" if len(discovered.series) > 5 else ""
        raise ScanError(f"holds {len(discovered.series)} series: {names}{more}", where=path, do="Give the name of one of them")
    # Not path.is_file(), which raises where a folder on the way is closed.
    if len(discovered.refused) == 1 or os.path.isfile(path):
        raise ScanError(discovered.refused[0].reason, where=discovered.refused[0].source)
    first = discovered.refused[0]
    raise ScanError(f"holds no usable series; {len(discovered.refused)} refused, the first: {first.reason}", where=path)


def read_series(series: Series, *, labels: bool = False) -> Scan:
    """Decode a series into a Scan.

    Voxels are int16 where that is exact, else float32; CT is in HU with padding clipped at -1024. Slices of a tilted gantry, or
    a sheared grid as a converter makes of them, are shifted onto a straight grid and noted, unless `series.tilt` refuses them;
    `labels` says that values must not be mixed then. Uneven slices are interpolated to even ones, and noted, where no gap is
    wider than `series.widest_gap`. Raises ScanError for what cannot be a volume: unreadable files, NaN, one slice (unless of
    `labels`), wider gaps.
    Whether a scan is of use is another question: see `verdict.judge_scan`.
    """
    return read_measured(series, labels=labels)[0]


def read_measured(series: Series, *, labels: bool = False) -> tuple[Scan, HuEvidence | None]:
    """As `read_series`, with the evidence counted while reading, for `judge_scan`; None if the grid was resampled."""
    with explain_faults("cannot be read", where=series.source, do="Convert or export it again, or exclude it"):
        try:
            return _read_series(series, labels)
        except ScanError as error:
            shown = None if error.where is None else str(show_place(error.where))
            if shown in (None, str(error.where)):
                raise
            # Of an archive: where it was unpacked tells the user nothing.
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
    """The axis across the slices of a tilted gantry and its angle, None for a straight grid; ScanError for what cannot be used."""
    if affine.skew <= _SKEW_TOLERANCE_DEGREES:
        return None
    tilted = measure_tilt(affine)
    if tilted is not None and series.tilt == "resample" and tilted[1] <= _STEEPEST_DEGREES:
        return tilted
    # Resampled along its axes it would show a slanted body.
    what = f"its axes are {affine.skew:.1f} degrees from perpendicular (a tilted gantry?)"
    raise ScanError(what, where=series.source, do="Resample it to an orthogonal grid, or exclude it")


def _check_finite(values: NDArray, source: str) -> None:
    if not np.issubdtype(values.dtype, np.floating):
        return
    # float64 may hold what is infinite as the float32 that it becomes.
    good = np.isfinite(values) if values.dtype.itemsize <= 4 else np.abs(values) <= np.finfo(np.float32).max
    bad = values.size - int(np.count_nonzero(good))
    if bad:
        what = f"{bad} of {values.size} voxels are NaN or infinite"
        raise ScanError(what, where=source, do="Replace them (outside the scanner's field: -1024), or exclude the scan")
