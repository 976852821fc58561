"""Pixels of one DICOM file to numbers that mean something: decoded, rescaled (HU for CT), padding named."""

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
"""Which package, with pylibjpeg, decodes which pixels; HTJ2K counts as JPEG 2000."""
PIXEL_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "Modality", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
"""What `decode_frames` needs of a file, pydicom's decoders included."""
_LITTLE_ENDIAN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_LARGE_AREA = 16
"""Pixels of one area: that many neighbours of tissue do not have one number by chance."""
_NEAR = 8
"""Numbers on either side of the padding's."""


@dataclass(frozen=True)
class Frames:
    """Rescaled values, frames x rows x columns, and of them how many are padding, and how many only have its number."""

    values: NDArray
    padded: int = 0
    kept: int = 0


def decode_frames(data: Dataset) -> Frames:
    """Rescaled values, int16 where exact, else float32.

    In CT, pixels of the PixelPaddingValue become -1024 HU; where tissue may have that number too, only areas that touch the
    border. Raises ScanError when the pixels are cut short, longer than the header claims, or cannot be decoded.
    """
    return _rescale_frames(data, _decode_stored(data))


def decode_plain(data: Mapping[str, Any]) -> Frames | None:
    """As `decode_frames`, of what `read_plain_slice` read; None where pydicom has to judge the pixels."""
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
            outside = _lies_outside(sorted((low * slope + intercept, high * slope + intercept)))
            inside = mask if outside else _keep_at_border(mask, frame, low, high)
            np.copyto(rescaled, LOWEST_HU, where=inside)
            marked = int(np.count_nonzero(inside))
            padded += marked
            kept += int(np.count_nonzero(mask)) - marked
        values.append(narrow_voxels(rescaled))
    return Frames(values[0][None] if len(values) == 1 else np.stack(values), padded, kept)


def _decode_stored(data: Dataset) -> NDArray:
    """Stored values, frames x rows x columns.

    pydicom corrects JPEG 2000 streams whose signedness disagrees with PixelRepresentation.
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
    """The stored values of uncompressed grey pixels of 16 bits, as `data.pixel_array` gives them, in a tenth of its time.

    None for all others, and for whatever the standard does not allow, which pydicom judges.
    """
    syntax = read_text(getattr(data, "file_meta", Dataset()), "TransferSyntaxUID")
    pixels = data.get("PixelData")
    if syntax not in _LITTLE_ENDIAN or not isinstance(pixels, bytes) or "FloatPixelData" in data:
        return None
    described = {name: read_numbers(data, name) for name in ("SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit")}
    bits = described["BitsStored"][0] if len(described["BitsStored"]) == 1 else 0
    plain = described == {"SamplesPerPixel": (1,), "BitsAllocated": (16,), "BitsStored": (bits,), "HighBit": (bits - 1,)}
    sign = read_numbers(data, "PixelRepresentation")
    grey = read_text(data, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
    count = read_count(data, "Rows", 0) * read_count(data, "Columns", 0) * read_count(data, "NumberOfFrames", 1)
    if not (plain and grey and 1 <= bits <= 16 and sign in ((0.0,), (1.0,)) and count and len(pixels) == 2 * count):
        return None
    stored: NDArray = np.frombuffer(pixels, "<i2" if sign == (1.0,) else "<u2")
    unused = 16 - int(bits)
    limits = np.iinfo(stored.dtype)
    if unused and (stored.min() < limits.min >> unused or stored.max() > limits.max >> unused):
        # The bits above those stored may hold anything (PS3.5, 8.1.1).
        stored = stored << unused
        stored >>= unused
    return stored


def _check_codec(data: Dataset) -> None:
    """Refuse pixels whose codec is not installed, naming the package that brings it, and those that are video."""
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
    """Refuse uncompressed pixels that are more than the header claims, of which pydicom takes the first, scrambled."""
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
        # Modulo 2^16: what is left over on the way falls off where the result has room.
        factor, shift = (np.array(int(number) & 0xFFFF, np.uint16).view(np.int16) for number in (slope, intercept))
        narrow = stored.astype(np.uint16, copy=False).view(np.int16)
        return narrow + shift if slope == 1 else narrow * factor + shift
    return stored.astype(np.int64) * int(slope) + int(intercept)


def _find_rescale(data: Dataset, index: int) -> tuple[float, float]:
    """Slope and intercept of a frame, from its functional group, the shared one, or the file itself."""
    frames = read_items(data, "PerFrameFunctionalGroupsSequence")
    for place in (*frames[index : index + 1], *read_items(data, "SharedFunctionalGroupsSequence")):
        items = read_items(place, "PixelValueTransformationSequence")
        if items:
            slope, intercept = read_number(items[0], "RescaleSlope"), read_number(items[0], "RescaleIntercept")
            if slope is None or intercept is None:
                missing = "RescaleSlope" if slope is None else "RescaleIntercept"
                raise ScanError(f"the functional group of frame {index + 1} lacks {missing}", do="Export the series again")
            return slope, intercept
    slope, intercept = read_number(data, "RescaleSlope"), read_number(data, "RescaleIntercept")
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def _find_padding(data: Dataset, kind: np.dtype) -> tuple[int, int] | None:
    """Lowest and highest stored number of the padding, in the pixels' own representation."""
    values = [*read_numbers(data, "PixelPaddingValue")[:1], *read_numbers(data, "PixelPaddingRangeLimit")[:1]]
    if not values or "PixelPaddingValue" not in data or kind.kind not in "iu":
        return None
    numbers = [_represent(int(value), kind) for value in values if np.isfinite(value)]
    return (min(numbers), max(numbers)) if numbers else None


def _represent(value: int, kind: np.dtype) -> int:
    """A number of the other signedness, such as -2000 of unsigned pixels, by the bits that it is stored as."""
    limits = np.iinfo(kind)
    if limits.min <= value <= limits.max:
        return value
    bits = value % (1 << limits.bits)
    return bits if bits <= limits.max else bits - (1 << limits.bits)


def _lies_outside(range_hu: list[float]) -> bool:
    """Whether no tissue can have these HU: then every pixel of them is padding. Air at -1024 is changed by nothing."""
    low, high = range_hu
    return high <= LOWEST_HU or low > HIGHEST_TISSUE_HU


def _keep_at_border(mask: NDArray[np.bool_], frame: NDArray, low: int, high: int) -> NDArray[np.bool_]:
    """The areas of a frame's mask that touch the frame's border, without what tissue at the border has by chance."""
    border = np.concatenate([frame[0], frame[-1], frame[1:-1, 0], frame[1:-1, -1]]).astype(np.int64)
    hits = np.count_nonzero((border >= low) & (border <= high))
    if not hits:
        return np.zeros_like(mask)
    areas, count = ndimage.label(mask)
    touching = np.unique(np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]]))
    near = np.count_nonzero((border >= low - _NEAR) & (border <= high + _NEAR)) - hits
    # Of tissue's own numbers, those beside the padding's are about as frequent.
    by_chance = hits <= 4 * near / (2 * _NEAR) * (high - low + 1)
    sizes = np.bincount(areas.ravel(), minlength=count + 1)
    wanted = [area for area in touching if area and (sizes[area] >= _LARGE_AREA or not by_chance)]
    return np.isin(areas, wanted)
