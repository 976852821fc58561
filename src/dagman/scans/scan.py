"""A scan: one 3D image with its place in the patient, and what makes two of them the same."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.records.hashes import hash_array, hash_bytes
from dagman.scans.affine import Affine

Modality = Literal["CT", "MR", "other"]
Voxels = NDArray[np.int16] | NDArray[np.float32]

_LEAST_ROUNDED = 100.0
"""Range of values that may be rounded to whole numbers for a hash."""


@dataclass(frozen=True, eq=False)
class RawImage:
    """What a format's reader makes of a file before anything is judged.

    `values` is X Y Z in the file's own axis order with its rescaling applied, of any number type; `notes` say what the
    reader had to assume.
    """

    values: NDArray
    affine: Affine
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """One 3D image.

    `voxels` is X Y Z, int16 or float32, in HU for CT; `affine` takes indices to RAS mm; `patient` is a pseudonym
    (see `pseudonyms`); `source` is the user's own path; `notes` say what was done to the values while reading.
    """

    voxels: Voxels
    affine: Affine
    modality: Modality
    patient: str = field(repr=False)
    source: str = field(repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3:
            raise ScanError(f"a scan has 3 axes, not {self.voxels.ndim}", where=self.source, do="Give one volume")
        if self.voxels.dtype not in (np.int16, np.float32):
            raise ScanError(f"voxels are int16 or float32, not {self.voxels.dtype}", where=self.source, do="Use narrow_voxels")
        if self.modality not in get_args(Modality):
            raise ScanError(f"modality is CT, MR or other, not {self.modality!r}", where=self.source)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along X, Y, Z."""
        x, y, z = self.voxels.shape
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along X, Y, Z, in mm."""
        return self.affine.spacing

    def __repr__(self) -> str:
        # No patient and no path: a repr lands in logs and bug reports.
        shape = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{value:.4g}" for value in self.spacing)
        return f"Scan({self.modality}, {shape} voxels, {spacing} mm, {self.affine.axis_codes}, {self.voxels.dtype})"


def reorient_scan(scan: Scan) -> Scan:
    """The same scan with its axes in the order and direction nearest to RAS+.

    Exact: axes are swapped and flipped, nothing is interpolated, an oblique scan keeps its obliqueness. The voxels are
    a view of the given ones, possibly with negative strides.
    """
    order, flips = scan.affine.nearest_ras()
    voxels, affine = scan.voxels.transpose(order), scan.affine.permute(order)
    for axis in np.flatnonzero(flips):
        affine = affine.flip(int(axis), voxels.shape[axis])
        voxels = np.flip(voxels, int(axis))
    return replace(scan, voxels=voxels, affine=affine)


def drop_voxels(scan: Scan) -> Scan:
    """The same scan for those who need its grid alone: every voxel is 0, and they take no memory."""
    return replace(scan, voxels=np.broadcast_to(np.zeros((), scan.voxels.dtype), scan.shape))


def hash_scan(scan: Scan) -> str:
    """A hash of what the scan shows: equal for the NIfTI and the DICOM of one scan, whatever the axis order or flip.

    It covers the RAS+ voxels rounded to int16 (as they are where they span less than 100) and the spacing to 0.01 mm; not the
    place, names or file.
    """
    upright = reorient_scan(scan)
    voxels = upright.voxels
    if voxels.dtype != np.int16 and float(voxels.max()) - float(voxels.min()) < _LEAST_ROUNDED:
        # Rounded, all scans of values in 0 to 1, such as ADC in mm2/s, would be one. The zero takes the sign off another zero.
        voxels = voxels + np.float32(0)
    elif voxels.dtype != np.int16:
        limits = np.iinfo(np.int16)
        voxels = np.clip(np.rint(voxels), limits.min, limits.max).astype(np.int16)
    # Rounded twice: 0.785 as float32 and as float64 must fall on the same side of the half.
    spacing = ",".join(f"{round(round(value, 4), 2):.2f}" for value in upright.spacing)
    # Z Y X: files store X fastest, so this order needs the least copying.
    return hash_bytes(f"{spacing}|{hash_array(voxels.T)}".encode())


def narrow_voxels(values: NDArray) -> Voxels:
    """Numbers of any type as int16 where that is exact, else as float32."""
    if values.dtype == np.int16:
        return values
    limits = np.iinfo(np.int16)
    small = values.size > 0 and values.min() >= limits.min and values.max() <= limits.max
    if small and (np.issubdtype(values.dtype, np.integer) or np.array_equal(values, np.rint(values))):
        return values.astype(np.int16)
    return values.astype(np.float32)
