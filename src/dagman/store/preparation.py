"""From a scan to what an encoder is given: upright, 2 mm isotropic, without the air around the body, int16.

The store and the encoder both call `prepare_scan`, so that a file and its stored copy give the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dagman.errors import ScanError, SettingsError
from dagman.records.hashes import hash_bytes
from dagman.scans.affine import Affine
from dagman.scans.scan import Modality, Scan, hash_scan, reorient_scan
from dagman.store.body import CT_LEVELS, SCALED_LEVELS, Triple, find_body
from dagman.store.resampling import apply_weights, axis_weights, resample_labels, resample_voxels, to_labels

VERSION = 1
"""Raised when the same settings would give other voxels."""
AIR = -1024
"""HU outside a scan."""
SCALED_RANGE = (0, 10000)
"""What the 0.5 and 99.5 percentile of a scan that is not in HU are stored as; values beyond them are kept."""

Scale = tuple[float, float]
"""(low, high): the scan's own values that are stored as 0 and 10000."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How scans are prepared.

    `spacing`: mm between voxel centres, the same along all axes (METHOD, App. A). `crop_body`: leave out the air around the
    body [ours]. `version`: of the procedure itself. Raises SettingsError for a spacing outside 0.2 to 20 mm.
    """

    spacing: float = 2.0
    crop_body: bool = True
    version: int = VERSION

    def __post_init__(self) -> None:
        if not 0.2 <= self.spacing <= 20.0:
            raise SettingsError(f"spacing is {self.spacing:g} mm", do="Give 0.2 to 20 mm")
        object.__setattr__(self, "spacing", float(self.spacing))

    @property
    def digest(self) -> str:
        """A hash of all settings: equal digests make equal voxels."""
        return hash_bytes(json.dumps(asdict(self), sort_keys=True).encode())


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedScan:
    """A scan as it is stored.

    `voxels` int16 X Y Z, RAS+, C order: HU for CT, else scaled by `scale`. `affine` to RAS mm, of the cropped grid.
    `crop_box` (start, stop) in the resampled grid before the crop. `content_hash` as `hash_scan` of the scan as read.
    """

    voxels: NDArray[np.int16]
    affine: Affine
    modality: Modality
    crop_box: tuple[Triple, Triple]
    scale: Scale | None
    content_hash: str
    patient: str = field(repr=False)
    source: str = field(repr=False)

    @property
    def shape(self) -> Triple:
        """Number of voxels along X, Y, Z."""
        x, y, z = self.voxels.shape
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along X, Y, Z, in mm."""
        return self.affine.spacing

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"PreparedScan({self.modality}, {shape} voxels, {self.spacing[0]:.4g} mm, {self.content_hash[:16]})"


def prepare_scan(scan: Scan, preparation: Preparation) -> PreparedScan:
    """Bring a scan upright, resample it (anti-aliased), crop it to the body, and round it to int16.

    An oblique scan is resampled along its own axes; the affine keeps the obliqueness. Raises ScanError when the values
    cannot be scaled or the grid would be absurdly large.
    """
    scale = find_scale(scan)
    upright = reorient_scan(scan)
    try:
        values, affine = resample_voxels(upright.voxels, upright.affine, preparation.spacing)
    except ScanError as error:
        raise ScanError(error.what, where=scan.source, do=error.do) from error
    if scale is not None:
        values -= scale[0]
        values *= (SCALED_RANGE[1] - SCALED_RANGE[0]) / (scale[1] - scale[0])
    limits = np.iinfo(np.int16)
    voxels = np.clip(np.rint(values, out=values), limits.min, limits.max, out=values).astype(np.int16)
    start, stop = (0, 0, 0), (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    if preparation.crop_body:
        start, stop = find_body(voxels, preparation.spacing, CT_LEVELS if scale is None else SCALED_LEVELS)
    box = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
    return PreparedScan(
        voxels=np.ascontiguousarray(voxels[box]),
        affine=affine.crop(start),
        modality=scan.modality,
        crop_box=(start, stop),
        scale=scale,
        content_hash=hash_scan(scan),
        patient=scan.patient,
        source=scan.source,
    )


def find_scale(scan: Scan) -> Scale | None:
    """The 0.5 and 99.5 percentile of a scan that is not in HU (METHOD: MR); None for CT.

    Raises ScanError when hardly any voxel differs from the others.
    """
    if scan.modality == "CT":
        return None
    low, high = (float(value) for value in np.percentile(scan.voxels, (0.5, 99.5)))
    if low == high:
        low, high = float(scan.voxels.min()), float(scan.voxels.max())
    if low == high:
        raise ScanError("all voxels have one value", where=scan.source, do="Leave it out")
    return low, high


def prepare_mask(mask: Scan, prepared: PreparedScan) -> NDArray[np.int32]:
    """A label map, on any grid, as labels on the grid of a prepared scan (X Y Z, nearest voxel, 0 outside).

    A structure too small to meet any voxel centre keeps one voxel, the nearest to its middle; one that lies outside the
    prepared scan is absent.
    """
    labels = resample_labels(mask.voxels, mask.affine, prepared.affine, prepared.shape)
    wanted = to_labels(mask.voxels)
    vanished = np.setdiff1d(np.unique(wanted[wanted != 0]), labels[labels != 0])
    for label in vanished:
        own = np.argwhere(wanted == label)
        # A bent structure's centroid may lie outside it, so the voxel of its own that is nearest.
        middle = own[np.argmin(np.sum((own - own.mean(axis=0)) ** 2, axis=1))]
        place = np.rint(prepared.affine.to_voxel(mask.affine.to_world(middle[None]))[0]).astype(int)
        if (place >= 0).all() and (place < prepared.shape).all():
            labels[tuple(place)] = label
    return labels


def restore_to_scan_grid(
    values: NDArray, prepared: PreparedScan, scan: Scan, interpolation: Literal["linear", "nearest"] = "linear"
) -> NDArray:
    """Values on the prepared grid (X Y Z), such as attention or labels, as an array on the grid of the scan it came from.

    "linear" gives float32, "nearest" keeps the dtype; voxels outside the prepared grid (the air that was cut off) are 0.
    """
    if values.shape != prepared.shape:
        raise ValueError(f"values have shape {values.shape}, the prepared scan {prepared.shape}")
    order, flips = scan.affine.nearest_ras()
    upright = reorient_scan(scan)
    change = np.linalg.inv(prepared.affine.matrix) @ upright.affine.matrix
    steps = np.diag(change)[:3]
    if not np.allclose(change[:3, :3], np.diag(steps), atol=1e-4):
        raise ValueError("the axes of the prepared scan are not those of this scan")
    positions = [offset + step * np.arange(size) for offset, step, size in zip(change[:3, 3], steps, upright.shape, strict=True)]
    # Half a voxel beyond the last centre still belongs to the grid; the tolerance is for rounding in the affines.
    inside = [(place > -0.5 - 1e-4) & (place < size - 0.5 + 1e-4) for place, size in zip(positions, values.shape, strict=True)]
    positions = [place[within] for place, within in zip(positions, inside, strict=True)]
    result = np.zeros(upright.shape, dtype=np.float32 if interpolation == "linear" else values.dtype)
    if interpolation == "linear":
        weights = [axis_weights(size, place, step) for size, place, step in zip(values.shape, positions, steps, strict=True)]
        result[np.ix_(*inside)] = apply_weights(values, weights)
    else:
        nearest = (np.floor(place + 0.5).astype(int) for place in positions)
        indices = [np.clip(index, 0, size - 1) for size, index in zip(values.shape, nearest, strict=True)]
        result[np.ix_(*inside)] = values[np.ix_(*indices)]
    result = np.flip(result, tuple(axis for axis in range(3) if flips[axis]))
    return result.transpose(np.argsort(order))
