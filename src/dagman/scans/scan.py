"""The type `Scan`: a 3D image with its affine, and the hash by which identical scans are recognised."""

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
"""Smallest range of values that are rounded to whole numbers for a hash."""


@dataclass(frozen=True, eq=False)
class RawImage:
    """The values and affine that a format's reader returns, before any checks."""

    values: NDArray
    "X Y Z in the file's own axis order, rescaled, of any number type."
    affine: Affine
    notes: tuple[str, ...] = ()
    "Assumptions that the reader made."


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """One 3D image with its affine, modality and patient."""

    voxels: Voxels
    "X Y Z, int16 or float32, in HU for CT."
    affine: Affine
    "Maps voxel indices to RAS mm."
    modality: Modality
    patient: str = field(repr=False)
    "A pseudonym (see `pseudonyms`)."
    source: str = field(repr=False)
    "The user's path of the scan."
    notes: tuple[str, ...] = ()
    "How values were changed while reading."

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
        # Without patient and path, since a repr ends up in logs and bug reports.
        shape = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{value:.4g}" for value in self.spacing)
        return f"Scan({self.modality}, {shape} voxels, {spacing} mm, {self.affine.axis_codes}, {self.voxels.dtype})"


def reorient_scan(scan: Scan) -> Scan:
    """Return the scan with its axes in the order and direction closest to RAS+.

    Axes are only swapped and flipped; nothing is interpolated, so an oblique scan stays oblique. The voxels are a view of the
    given ones, possibly with negative strides.
    """
    order, flips = scan.affine.nearest_ras()
    voxels, affine = scan.voxels.transpose(order), scan.affine.permute(order)
    for axis in np.flatnonzero(flips):
        affine = affine.flip(int(axis), voxels.shape[axis])
        voxels = np.flip(voxels, int(axis))
    return replace(scan, voxels=voxels, affine=affine)


def drop_voxels(scan: Scan) -> Scan:
    """Return the scan with all voxels 0, without using memory for them, for code that needs only the grid."""
    return replace(scan, voxels=np.broadcast_to(np.zeros((), scan.voxels.dtype), scan.shape))


def hash_scan(scan: Scan) -> str:
    """Return a hash of a scan's content, which is equal for the NIfTI and the DICOM of a scan, in any axis order and direction.

    It covers the RAS+ voxels rounded to int16 (not rounded if their range is below 100) and the spacing rounded to 0.01 mm. It
    does not cover the origin, names and files.
    """
    upright = reorient_scan(scan)
    voxels = upright.voxels
    if voxels.dtype != np.int16 and float(voxels.max()) - float(voxels.min()) < _LEAST_ROUNDED:
        # Rounding would make all scans with values from 0 to 1 equal, such as ADC in mm2/s. Adding zero turns -0.0 into 0.0.
        voxels = voxels + np.float32(0)
    elif voxels.dtype != np.int16:
        limits = np.iinfo(np.int16)
        voxels = np.clip(np.rint(voxels), limits.min, limits.max).astype(np.int16)
    # Rounded twice, so that 0.785 as float32 and as float64 are rounded in the same direction.
    spacing = ",".join(f"{round(round(value, 4), 2):.2f}" for value in upright.spacing)
    # In the order Z Y X, which needs the least copying, since files store X fastest.
    return hash_bytes(f"{spacing}|{hash_array(voxels.T)}".encode())


def narrow_voxels(values: NDArray) -> Voxels:
    """Convert numbers of any type to int16 if that is exact, otherwise to float32."""
    if values.dtype == np.int16:
        return values
    limits = np.iinfo(np.int16)
    in_range = values.size > 0 and values.min() >= limits.min and values.max() <= limits.max
    if in_range and (np.issubdtype(values.dtype, np.integer) or np.array_equal(values, np.rint(values))):
        return values.astype(np.int16)
    return values.astype(np.float32)
