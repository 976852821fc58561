"""Prepares scans for an encoder: RAS+, isotropic (2 mm by default), without the air around the body, int16.

Both the store and the encoder call `prepare_scan`, so that a file and its stored copy give the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Literal

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from dagman.errors import ScanError, SettingsError
from dagman.records.hashes import hash_bytes
from dagman.scans.affine import Affine
from dagman.scans.scan import Modality, Scan, hash_scan, reorient_scan
from dagman.store.body import CT_LEVELS, SCALED_LEVELS, Triple, find_body
from dagman.store.resampling import apply_weights, axis_weights, list_values, resample_labels, resample_voxels, to_labels

VERSION = 1
"""To be incremented when the same settings give different voxels."""
AIR = -1024
"""HU outside a scan."""
SCALED_RANGE = (0, 10000)
"""Stored values of the 0.5 and 99.5 percentile of a scan that is not in HU; values beyond them are not clipped."""

Box = tuple[slice, slice, slice]
Scale = tuple[float, float]
"""(low, high): the scan's values that are stored as 0 and 10000."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How scans are prepared.

    Raises:
        SettingsError: if the spacing is not between 0.2 and 20 mm.
    """

    spacing: float = 2.0
    "Voxel size in mm, the same along all axes (METHOD, App. A)."
    crop_body: bool = True
    "Whether the air around the body is cut off. [ours]"
    version: int = VERSION
    "Version of the procedure itself."

    def __post_init__(self) -> None:
        if not 0.2 <= self.spacing <= 20.0:
            raise SettingsError(f"spacing is {self.spacing:g} mm", do="Give 0.2 to 20 mm")
        object.__setattr__(self, "spacing", float(self.spacing))

    @property
    def digest(self) -> str:
        """A hash of all settings: equal digests give equal voxels."""
        return hash_bytes(json.dumps(asdict(self), sort_keys=True).encode())


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedScan:
    """A scan as it is stored."""

    voxels: NDArray[np.int16]
    "X Y Z, RAS+, in C order: HU for CT, otherwise scaled by `scale`."
    affine: Affine
    "Affine of the cropped grid, to RAS mm."
    modality: Modality
    crop_box: tuple[Triple, Triple]
    "Start and stop of the crop in the resampled grid."
    scale: Scale | None
    "None for CT."
    content_hash: str
    "`hash_scan` of the original scan."
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
    """Reorient a scan to RAS+, resample it (anti-aliased), crop it to the body, and round it to int16.

    An oblique scan is resampled along its own axes, and stays oblique.

    Raises:
        ScanError: if all values are equal, or the grid would be absurdly large.
    """
    scale = find_scale(scan)
    upright = reorient_scan(scan)
    try:
        voxels, affine = resample_voxels(
            upright.voxels, upright.affine, preparation.spacing, finish=partial(_scale_and_round, scale), dtype=np.int16
        )
    except ScanError as error:
        raise ScanError(error.what, where=scan.source, do=error.do) from error
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


def _scale_and_round(scale: Scale | None, values: NDArray[np.float32]) -> None:
    if scale is not None:
        values -= scale[0]
        values *= (SCALED_RANGE[1] - SCALED_RANGE[0]) / (scale[1] - scale[0])
    limits = np.iinfo(np.int16)
    np.clip(np.rint(values, out=values), limits.min, limits.max, out=values)


def find_scale(scan: Scan) -> Scale | None:
    """Return the 0.5 and 99.5 percentile of a scan that is not in HU (METHOD: MR); None for CT.

    Raises:
        ScanError: if all voxels have the same value.
    """
    if scan.modality == "CT":
        return None
    low, high = (float(value) for value in np.percentile(scan.voxels, (0.5, 99.5)))
    if low == high:
        low, high = float(scan.voxels.min()), float(scan.voxels.max())
    if low == high:
        raise ScanError("all voxels have the same value", where=scan.source, do="Exclude it")
    return low, high


def prepare_mask(mask: Scan, prepared: PreparedScan) -> NDArray[np.int32]:
    """Resample a label map, on any grid, to the grid of a prepared scan (X Y Z, nearest voxel, 0 outside).

    A structure that is too small to contain a voxel centre keeps one voxel, close to its middle. A structure outside the prepared
    scan is lost.
    """
    labels = resample_labels(mask.voxels, mask.affine, prepared.affine, prepared.shape)
    original = to_labels(mask.voxels)
    vanished = np.setdiff1d(list_values(original), [0, *list_values(labels)])
    for label in vanished:
        members = np.argwhere(original == label)
        # The centroid of a curved structure may lie outside it, so take the structure's voxel that is closest to it.
        middle = members[np.argmin(np.sum((members - members.mean(axis=0)) ** 2, axis=1))]
        voxel = np.rint(prepared.affine.to_voxel(mask.affine.to_world(middle[None]))[0]).astype(int)
        if (voxel >= 0).all() and (voxel < prepared.shape).all():
            labels[tuple(voxel)] = label
    return labels


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanGrid:
    """The grid of a scan relative to the grid of its prepared form, to bring values back (see `place_on_scan`).

    "Upright" means that the scan's axes are reoriented to RAS+.
    """

    shape: Triple
    "Shape of the upright scan."
    prepared: Triple
    "Shape of the prepared form."
    inside: tuple[slice, slice, slice]
    "Voxels of each upright axis that lie inside the prepared grid."
    positions: tuple[NDArray[np.float64], ...] = field(repr=False)
    "Their positions in the prepared grid, as fractional indices."
    steps: tuple[float, float, float]
    "Distance between these positions."
    order: Triple
    "Order of the scan's own axes."
    flips: tuple[bool, bool, bool]
    "Which of the axes are flipped."

    @cached_property
    def weights(self) -> list[scipy.sparse.csr_array]:
        """Matrices for linear interpolation along each upright axis, (voxels of the scan, voxels of the prepared form)."""
        parts = zip(self.prepared, self.positions, self.steps, strict=True)
        return [axis_weights(size, positions, step) for size, positions, step in parts]

    def interpolate(self, values: NDArray, box: Box | None = None, start: Triple = (0, 0, 0)) -> NDArray[np.float32]:
        """Interpolate values linearly to the upright grid of the scan, or a box of it; 0 outside the prepared grid.

        Args:
            values: X Y Z on the prepared grid.
            box: part of the upright grid; None for the whole.
            start: index on the prepared grid of the first value, if only those are given that the box needs.
        """
        box = box or self.whole
        result = np.zeros([part.stop - part.start for part in box], dtype=np.float32)
        matrices, columns, target = [], [], []
        for matrix, within, part, offset in zip(self.weights, self.inside, box, start, strict=True):
            first, last = max(part.start, within.start), max(part.start, within.start, min(part.stop, within.stop))
            rows = matrix[first - within.start : last - within.start]
            used = _cover(np.bincount(rows.indices, minlength=rows.shape[1]) > 0)
            matrices.append(rows[:, used])
            columns.append(slice(used.start - offset, used.stop - offset))
            target.append(slice(first - part.start, last - part.start))
        if all(matrix.shape[0] for matrix in matrices):
            result[tuple(target)] = apply_weights(values[tuple(columns)], matrices)
        return result

    def find_box(self, marked: NDArray[np.bool_], start: Triple = (0, 0, 0)) -> Box | None:
        """Find the box of the upright scan whose interpolation uses marked voxels of the prepared form; None if there is none.

        It is the whole scan if any weight is negative, since a weighted mean may then exceed the values it is computed from.

        Args:
            marked: X Y Z on the prepared grid, or a part of it.
            start: index of the first voxel of this part.
        """
        if not marked.any():
            return None
        if any(len(matrix.data) and matrix.data.min() < 0 for matrix in self.weights):
            return self.whole
        parts = []
        for axis, (matrix, within) in enumerate(zip(self.weights, self.inside, strict=True)):
            others = tuple(other for other in range(3) if other != axis)
            read = np.zeros(matrix.shape[1], dtype=np.float32)
            read[start[axis] : start[axis] + marked.shape[axis]] = marked.any(axis=others)
            reached = _cover(matrix @ read > 0)
            if reached.stop == reached.start:
                return None
            parts.append(slice(within.start + reached.start, within.start + reached.stop))
        return parts[0], parts[1], parts[2]

    @property
    def whole(self) -> Box:
        """The box of the whole upright scan."""
        return slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2])

    def to_scan(self, upright: NDArray) -> NDArray:
        """Return an upright array in the order and direction of the scan's own axes."""
        flipped = np.flip(upright, tuple(axis for axis in range(3) if self.flips[axis]))
        return flipped.transpose(np.argsort(self.order))


def place_on_scan(prepared: PreparedScan, scan: Scan) -> ScanGrid:
    """Locate the grid of a scan in the grid of its prepared form; raises ValueError if their axes differ."""
    order, flips = scan.affine.nearest_ras()
    upright = reorient_scan(scan)
    change = np.linalg.inv(prepared.affine.matrix) @ upright.affine.matrix
    steps = np.diag(change)[:3]
    if not np.allclose(change[:3, :3], np.diag(steps), atol=1e-4):
        raise ValueError("the axes of the prepared scan are not those of this scan")
    positions, inside = [], []
    for offset, step, size, prepared_size in zip(change[:3, 3], steps, upright.shape, prepared.shape, strict=True):
        indices = offset + step * np.arange(size)
        # The grid extends half a voxel beyond the last centre; the tolerance allows for rounding errors in the affines.
        within = _cover((indices > -0.5 - 1e-4) & (indices < prepared_size - 0.5 + 1e-4))
        positions.append(indices[within])
        inside.append(within)
    return ScanGrid(
        shape=upright.shape,
        prepared=prepared.shape,
        inside=(inside[0], inside[1], inside[2]),
        positions=tuple(positions),
        steps=(float(steps[0]), float(steps[1]), float(steps[2])),
        order=order,
        flips=flips,
    )


def restore_to_scan_grid(
    values: NDArray, prepared: PreparedScan, scan: Scan, interpolation: Literal["linear", "nearest"] = "linear"
) -> NDArray:
    """Resample values from the prepared grid, such as attention or labels, to the grid of the original scan.

    Args:
        values: X Y Z on the prepared grid.
        prepared: the prepared scan.
        scan: the original scan.
        interpolation: "linear" returns float32, "nearest" keeps the dtype.

    Returns:
        The values on the scan's grid; voxels outside the prepared grid (the air that was cut off) are 0.
    """
    if values.shape != prepared.shape:
        raise ValueError(f"values have shape {values.shape}, the prepared scan {prepared.shape}")
    grid = place_on_scan(prepared, scan)
    if interpolation == "linear":
        return grid.to_scan(grid.interpolate(values))
    result = np.zeros(grid.shape, dtype=values.dtype)
    nearest = (np.floor(positions + 0.5).astype(int) for positions in grid.positions)
    indices = [np.clip(index, 0, size - 1) for size, index in zip(values.shape, nearest, strict=True)]
    result[grid.inside] = values[np.ix_(*indices)]
    return grid.to_scan(result)


def _cover(marked: NDArray[np.bool_]) -> slice:
    """Return the slice from the first to the last True; an empty one if there is none."""
    indices = np.flatnonzero(marked)
    return slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 0)
