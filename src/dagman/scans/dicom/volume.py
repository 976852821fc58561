"""Files of one DICOM volume to values and an affine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.scans.dicom.geometry import Plane, order_planes
from dagman.scans.dicom.headers import quiet_pydicom, read_planes
from dagman.scans.dicom.pixels import decode_frames
from dagman.scans.scan import RawImage


def read_volume(files: Sequence[Path], *, source: str) -> RawImage:
    """Values (column, row, slice), rescaled slice by slice, and the affine to RAS mm; `files` in any order.

    Raises ScanError: a file that is cut short or cannot be decoded is named; for what is wrong with the geometry see
    `geometry.order_planes`.
    """
    slices: list[NDArray] = []
    planes: list[Plane] = []
    for path in files:
        frames, places = _read_file(path)
        slices.extend(frames)
        planes.extend(places)
    try:
        order, affine = order_planes(planes)
    except ScanError as error:
        raise ScanError(error.what, where=source, do=error.do) from error
    values = np.stack([slices[index] for index in order])
    return RawImage(values.transpose(2, 1, 0), affine)


def _read_file(path: Path) -> tuple[NDArray, tuple[Plane, ...]]:
    try:
        with quiet_pydicom():
            data = pydicom.dcmread(path, force=True)
            planes = read_planes(data)
    except Exception as error:  # pydicom raises many kinds on damaged bytes; each means that this file is damaged.
        raise ScanError("is damaged or cut off in its DICOM header", where=path, do="Export the series again") from error
    try:
        frames = decode_frames(data)
    except ScanError as error:
        raise ScanError(error.what, where=path, do=error.do) from error
    if len(frames) != len(planes):
        raise ScanError(f"holds {len(frames)} frames, but places for {len(planes)}", where=path, do="Export the series again")
    return frames, planes
