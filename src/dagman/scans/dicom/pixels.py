"""Pixels of one DICOM file to numbers that mean something: decoded, rescaled (HU for CT), padding named."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dagman.errors import ScanError
from dagman.scans.dicom.headers import quiet_pydicom
from dagman.scans.scan import narrow_voxels
from dagman.scans.verdict import LOWEST_HU


def decode_frames(data: Dataset) -> NDArray:
    """Rescaled values, frames x rows x columns, int16 where exact, else float32.

    In CT, pixels of the PixelPaddingValue become -1024 HU. Raises ScanError when the pixels are cut short or cannot be
    decoded.
    """
    stored = _decode_stored(data)
    return np.stack([narrow_voxels(_rescale(frame, data, index)) for index, frame in enumerate(stored)])


def _decode_stored(data: Dataset) -> NDArray:
    """Stored values, frames x rows x columns.

    pydicom corrects JPEG 2000 streams whose signedness disagrees with PixelRepresentation.
    """
    try:
        with quiet_pydicom():
            stored = data.pixel_array
    except Exception as error:  # Decoders raise what they like; each means that this file cannot be decoded.
        what = "pixel data are missing" if "PixelData" not in data else "pixel data are cut short or cannot be decoded"
        raise ScanError(what, do="Copy or export the series again") from error
    return stored.reshape(-1, int(data.Rows), int(data.Columns))


def _rescale(stored: NDArray, data: Dataset, index: int) -> NDArray:
    slope, intercept = _find_rescale(data, index)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ScanError(f"rescale slope {slope:g} and intercept {intercept:g} make no sense", do="Export the series again")
    whole = slope == int(slope) and intercept == int(intercept)
    values = stored.astype(np.int64) * int(slope) + int(intercept) if whole else stored * slope + intercept
    padding = _find_padding(data)
    if padding is not None and data.get("Modality") == "CT":
        low, high = padding
        values[(stored >= low) & (stored <= high)] = LOWEST_HU
    return values


def _find_rescale(data: Dataset, index: int) -> tuple[float, float]:
    """Slope and intercept of a frame, from its functional group, the shared one, or the file itself."""
    frames = data.get("PerFrameFunctionalGroupsSequence")
    places = [frames[index]] if frames else []
    places += list(data.get("SharedFunctionalGroupsSequence") or [])
    for place in places:
        found = place.get("PixelValueTransformationSequence")
        if found:
            return float(found[0].RescaleSlope), float(found[0].RescaleIntercept)
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    return float(1 if slope is None else slope), float(0 if intercept is None else intercept)


def _find_padding(data: Dataset) -> tuple[int, int] | None:
    value = data.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = data.get("PixelPaddingRangeLimit")
    other = limit if isinstance(limit, int) else value
    return min(value, other), max(value, other)
