"""Decodes the pixels of one DICOM file, rescales them (to HU for CT) and identifies padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes, RLETransferSyntaxes
from scipy import ndimage

from dagman.errors import ScanError
from dagman.scans.dicom.headers import is_uncompressed, quiet_pydicom
from dagman.scans.dicom.streams import check_streams
from dagman.scans.dicom.values import read_count, read_items, read_number, read_numbers, read_text
from dagman.scans.faults import explain_faults
from dagman.scans.inflating import check_length, find_smallest_error
from dagman.scans.scan import narrow_voxels
from dagman.scans.verdict import HIGHEST_TISSUE_HU, LOWEST_HU

_CODECS = {
    "pylibjpeg-libjpeg": (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes),
    "pylibjpeg-openjpeg": JPEG2000TransferSyntaxes,
    "pylibjpeg-rle": RLETransferSyntaxes,
}
"""Package that decodes each transfer syntax, together with pylibjpeg; HTJ2K counts as JPEG 2000."""
PIXEL_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "Modality", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
"""Elements that `decode_frames` needs, including those used by pydicom's decoders."""
_LITTLE_ENDIAN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_LARGE_AREA = 16
"""Number of pixels: an area this large of equal tissue values does not arise by chance."""
_NEAR = 8
"""Number of values on either side of the padding values that are compared with them."""


@dataclass(frozen=True)
class Frames:
    """The rescaled pixels of a file."""

    values: NDArray
    "Frames x rows x columns."
    padded: int = 0
    "Number of pixels that are padding."
    kept: int = 0
    "Number of pixels that have the padding value, but are inside the image and were kept."


def decode_frames(data: Dataset) -> Frames:
    """Decode and rescale the pixels of a file, as int16 if that is exact, otherwise float32.

    In CT, pixels with the PixelPaddingValue become -1024 HU. If tissue may have this value as well, only areas that touch the
    border of the image are changed.

    Raises:
        ScanError: if there are fewer or more pixels than the header claims, or they cannot be decoded.
    """
    return _rescale_frames(data, _decode_stored(data))


def decode_plain(data: Mapping[str, Any]) -> Frames | None:
    """Decode what `read_plain_slice` has read, like `decode_frames`; None if pydicom has to decode the pixels."""
    known = cast(Dataset, data)
    stored = view_plain(known)
    return None if stored is None else _rescale_frames(known, stored.reshape(-1, data["Rows"], data["Columns"]))


def _rescale_frames(data: Dataset, stored: NDArray) -> Frames:
    is_ct = read_text(data, "Modality") == "CT"
    values, padded, kept = [], 0, 0
    for index, frame in enumerate(stored):
        slope, intercept = _find_rescale(data, index)
        rescaled = _rescale(frame, slope, intercept)
        padding = _find_padding(data, frame.dtype) if is_ct else None
        if padding is not None:
            low, high = padding
            mask = frame == low if low == high else (frame >= low) & (frame <= high)
            is_unambiguous = _excludes_tissue(sorted((low * slope + intercept, high * slope + intercept)))
            is_padding = mask if is_unambiguous else _keep_at_border(mask, frame, low, high)
            np.copyto(rescaled, LOWEST_HU, where=is_padding)
            count = int(np.count_nonzero(is_padding))
            padded += count
            kept += int(np.count_nonzero(mask)) - count
        values.append(narrow_voxels(rescaled))
    return Frames(values[0][None] if len(values) == 1 else np.stack(values), padded, kept)


def _decode_stored(data: Dataset) -> NDArray:
    """Decode the stored values, frames x rows x columns.

    pydicom corrects JPEG 2000 streams whose sign disagrees with PixelRepresentation.
    """
    if "PixelData" not in data:
        raise ScanError("pixel data are missing", do="Copy or export the series again")
    _check_codec(data)
    with explain_faults("pixel data are cut short or cannot be decoded", where=None, do="Copy or export the series again"):
        shape = read_count(data, "Rows", 0), read_count(data, "Columns", 0), read_count(data, "NumberOfFrames", 1)
        _check_pixel_bytes(data, shape)
        plain = view_plain(data)
        if plain is not None:
            return plain.reshape(-1, *shape[:2])
        check_streams(data, shape)
        with quiet_pydicom():
            stored: NDArray = data.pixel_array
        return stored.reshape(-1, *shape[:2])


def view_plain(data: Dataset) -> NDArray | None:
    """Return the stored values of uncompressed 16-bit grey pixels like `data.pixel_array`, in a tenth of the time.

    Returns None for all other pixels, and for those that violate the standard, which are left to pydicom.
    """
    syntax = read_text(getattr(data, "file_meta", Dataset()), "TransferSyntaxUID")
    pixels = data.get("PixelData")
    if syntax not in _LITTLE_ENDIAN or not isinstance(pixels, bytes) or "FloatPixelData" in data:
        return None
    described = {name: read_numbers(data, name) for name in ("SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit")}
    bits = described["BitsStored"][0] if len(described["BitsStored"]) == 1 else 0
    is_plain = described == {"SamplesPerPixel": (1,), "BitsAllocated": (16,), "BitsStored": (bits,), "HighBit": (bits - 1,)}
    sign = read_numbers(data, "PixelRepresentation")
    is_grey = read_text(data, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
    count = read_count(data, "Rows", 0) * read_count(data, "Columns", 0) * read_count(data, "NumberOfFrames", 1)
    if not (is_plain and is_grey and 1 <= bits <= 16 and sign in ((0.0,), (1.0,)) and count and len(pixels) == 2 * count):
        return None
    stored: NDArray = np.frombuffer(pixels, "<i2" if sign == (1.0,) else "<u2")
    unused = 16 - int(bits)
    limits = np.iinfo(stored.dtype)
    if unused and (stored.min() < limits.min >> unused or stored.max() > limits.max >> unused):
        # The unused high bits may have any value (PS3.5, 8.1.1).
        stored = stored << unused
        stored >>= unused
    return stored


def _check_codec(data: Dataset) -> None:
    """Refuse pixels without an installed codec, naming the package to install, and pixels such as video without any codec."""
    syntax = UID(read_text(getattr(data, "file_meta", Dataset()), "TransferSyntaxUID"))
    if is_uncompressed(data) or not syntax.is_transfer_syntax or not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ScanError(
            f"its pixels are {syntax.name}, for which there is no codec", do="Export it as JPEG 2000, or uncompressed"
        ) from None
    if not decoder.is_available:
        package = next((package for package, known in _CODECS.items() if syntax in known), "python-gdcm")
        raise ScanError(f"its pixels are {syntax.name}, whose codec is not installed", do=f"pip install {package}")


def _check_pixel_bytes(data: Dataset, shape: tuple[int, int, int]) -> None:
    """Refuse uncompressed pixels if there are more than the header claims: pydicom would use the first ones, scrambled."""
    bits = read_count(data, "BitsAllocated", 8)
    if not is_uncompressed(data) or read_count(data, "SamplesPerPixel", 1) > 1 or bits % 8 or min(shape) < 1:
        return
    held, claimed = len(data.get("PixelData")), int(np.prod(shape)) * bits // 8
    if held > claimed + claimed % 2:
        rest = np.frombuffer(data.get("PixelData")[claimed : claimed + 512], np.uint8)
        check_length(held, claimed, rest, find_smallest_error(shape, bits // 8))


def _rescale(stored: NDArray, slope: float, intercept: float) -> NDArray:
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ScanError(f"rescale slope {slope:g} and intercept {intercept:g} are implausible", do="Export the series again")
    if slope != int(slope) or intercept != int(intercept):
        return stored * slope + intercept
    ends = [int(end) * int(slope) + int(intercept) for end in (stored.min(initial=0), stored.max(initial=0))]
    limits = np.iinfo(np.int16)
    if stored.dtype.itemsize == 2 and min(ends) >= limits.min and max(ends) <= limits.max:
        # int16 arithmetic modulo 2^16: intermediate overflow does not matter, since the result fits.
        factor, shift = (np.array(int(number) & 0xFFFF, np.uint16).view(np.int16) for number in (slope, intercept))
        narrow = stored.astype(np.uint16, copy=False).view(np.int16)
        return narrow + shift if slope == 1 else narrow * factor + shift
    return stored.astype(np.int64) * int(slope) + int(intercept)


def _find_rescale(data: Dataset, index: int) -> tuple[float, float]:
    """Read slope and intercept of a frame from its functional group, the shared group, or the file's own elements."""
    frames = read_items(data, "PerFrameFunctionalGroupsSequence")
    for group in (*frames[index : index + 1], *read_items(data, "SharedFunctionalGroupsSequence")):
        items = read_items(group, "PixelValueTransformationSequence")
        if items:
            slope, intercept = read_number(items[0], "RescaleSlope"), read_number(items[0], "RescaleIntercept")
            if slope is None or intercept is None:
                missing = "RescaleSlope" if slope is None else "RescaleIntercept"
                raise ScanError(f"the functional group of frame {index + 1} lacks {missing}", do="Export the series again")
            return slope, intercept
    slope, intercept = read_number(data, "RescaleSlope"), read_number(data, "RescaleIntercept")
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def _find_padding(data: Dataset, kind: np.dtype) -> tuple[int, int] | None:
    """Return the lowest and highest stored value of padding, in the pixels' own representation."""
    values = [*read_numbers(data, "PixelPaddingValue")[:1], *read_numbers(data, "PixelPaddingRangeLimit")[:1]]
    if not values or "PixelPaddingValue" not in data or kind.kind not in "iu":
        return None
    numbers = [_represent(int(value), kind) for value in values if np.isfinite(value)]
    return (min(numbers), max(numbers)) if numbers else None


def _represent(value: int, kind: np.dtype) -> int:
    """Convert a number of the wrong sign, such as -2000 for unsigned pixels, to the value with the same bits."""
    limits = np.iinfo(kind)
    if limits.min <= value <= limits.max:
        return value
    bits = value % (1 << limits.bits)
    return bits if bits <= limits.max else bits - (1 << limits.bits)


def _excludes_tissue(range_hu: list[float]) -> bool:
    """Return whether no tissue has these HU, so that all such pixels are padding (for air at -1024, nothing changes)."""
    low, high = range_hu
    return high <= LOWEST_HU or low > HIGHEST_TISSUE_HU


def _keep_at_border(mask: NDArray[np.bool_], frame: NDArray, low: int, high: int) -> NDArray[np.bool_]:
    """Keep the areas of a mask that touch the frame's border, except small ones that may be tissue with that value by chance."""
    border = np.concatenate([frame[0], frame[-1], frame[1:-1, 0], frame[1:-1, -1]]).astype(np.int64)
    hits = np.count_nonzero((border >= low) & (border <= high))
    if not hits:
        return np.zeros_like(mask)
    areas, count = ndimage.label(mask)
    touching = np.unique(np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]]))
    near = np.count_nonzero((border >= low - _NEAR) & (border <= high + _NEAR)) - hits
    # In tissue, the values next to the padding values are about as frequent as these.
    by_chance = hits <= 4 * near / (2 * _NEAR) * (high - low + 1)
    sizes = np.bincount(areas.ravel(), minlength=count + 1)
    kept = [area for area in touching if area and (sizes[area] >= _LARGE_AREA or not by_chance)]
    return np.isin(areas, kept)
