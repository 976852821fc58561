"""From a scan to what an encoder is given: upright, 2 mm isotropic, without the air around the body, int16.

The store and the encoder both call `prepare_scan`, so that a file and its stored copy give the same numbers.
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
"""Raised when the same settings would give other voxels."""
AIR = -1024
"""HU outside a scan."""
SCALED_RANGE = (0, 10000)
"""What the 0.5 and 99.5 percentile of a scan that is not in HU are stored as; values beyond them are kept."""

Box = tuple[slice, slice, slice]
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
    vanished = np.setdiff1d(list_values(wanted), [0, *list_values(labels)])
    for label in vanished:
        own = np.argwhere(wanted == label)
        # A bent structure's centroid may lie outside it, so the voxel of its own that is nearest.
        middle = own[np.argmin(np.sum((own - own.mean(axis=0)) ** 2, axis=1))]
        place = np.rint(prepared.affine.to_voxel(mask.affine.to_world(middle[None]))[0]).astype(int)
        if (place >= 0).all() and (place < prepared.shape).all():
            labels[tuple(place)] = label
    return labels


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanGrid:
    """The grid of a scan seen from that of its prepared form, to bring values back: see `place_on_scan`.

    `shape` of the scan, upright; `prepared` of the prepared form. Of each upright axis: `inside`, the voxels that lie in the
    prepared grid, and `positions` of these in it, `steps` of its voxels apart. `order` and `flips` of the scan's own axes.
    """

    shape: Triple
    prepared: Triple
    inside: tuple[slice, slice, slice]
    positions: tuple[NDArray[np.float64], ...] = field(repr=False)
    steps: tuple[float, float, float]
    order: Triple
    flips: tuple[bool, bool, bool]

    @cached_property
    def weights(self) -> list[scipy.sparse.csr_array]:
        """Of each upright axis, the matrix that interpolates linearly, voxels of the scan by voxels of the prepared form."""
        parts = zip(self.prepared, self.positions, self.steps, strict=True)
        return [axis_weights(size, place, step) for size, place, step in parts]

    def interpolate(self, values: NDArray, box: Box | None = None, start: Triple = (0, 0, 0)) -> NDArray[np.float32]:
        """Values on the prepared grid (X Y Z), linearly, on the upright grid of the scan, or on a box of it; 0 outside.

        start: the place of the first value, where only those are given that the box needs.
        """
        box = box or self.whole
        result = np.zeros([part.stop - part.start for part in box], dtype=np.float32)
        matrices, columns, target = [], [], []
        for matrix, within, part, before in zip(self.weights, self.inside, box, start, strict=True):
            first, last = max(part.start, within.start), max(part.start, within.start, min(part.stop, within.stop))
            rows = matrix[first - within.start : last - within.start]
            used = _cover(np.bincount(rows.indices, minlength=rows.shape[1]) > 0)
            matrices.append(rows[:, used])
            columns.append(slice(used.start - before, used.stop - before))
            target.append(slice(first - part.start, last - part.start))
        if all(matrix.shape[0] for matrix in matrices):
            result[tuple(target)] = apply_weights(values[tuple(columns)], matrices)
        return result

    def find_box(self, marked: NDArray[np.bool_], start: Triple = (0, 0, 0)) -> Box | None:
        """The box of the scan, upright, in which interpolation reads marked voxels of the prepared form; None if nowhere.

        start: the place of the first of them, where others are not given.
        The whole scan where a weight is below 0: a mean is then not held by what it is the mean of.
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
        """The box of the whole scan, upright."""
        return slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2])

    def to_scan(self, upright: NDArray) -> NDArray:
        """An upright array as the scan's own axes run."""
        flipped = np.flip(upright, tuple(axis for axis in range(3) if self.flips[axis]))
        return flipped.transpose(np.argsort(self.order))


def place_on_scan(prepared: PreparedScan, scan: Scan) -> ScanGrid:
    """How the grid of a scan lies in that of its prepared form; raises ValueError where their axes differ."""
    order, flips = scan.affine.nearest_ras()
    upright = reorient_scan(scan)
    change = np.linalg.inv(prepared.affine.matrix) @ upright.affine.matrix
    steps = np.diag(change)[:3]
    if not np.allclose(change[:3, :3], np.diag(steps), atol=1e-4):
        raise ValueError("the axes of the prepared scan are not those of this scan")
    positions, inside = [], []
    for offset, step, size, kept in zip(change[:3, 3], steps, upright.shape, prepared.shape, strict=True):
        place = offset + step * np.arange(size)
        # Half a voxel beyond the last centre still belongs to the grid; the tolerance is for rounding in the affines.
        within = _cover((place > -0.5 - 1e-4) & (place < kept - 0.5 + 1e-4))
        positions.append(place[within])
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
    """Values on the prepared grid (X Y Z), such as attention or labels, as an array on the grid of the scan it came from.

    "linear" gives float32, "nearest" keeps the dtype; voxels outside the prepared grid (the air that was cut off) are 0.
    """
    if values.shape != prepared.shape:
        raise ValueError(f"values have shape {values.shape}, the prepared scan {prepared.shape}")
    grid = place_on_scan(prepared, scan)
    if interpolation == "linear":
        return grid.to_scan(grid.interpolate(values))
    result = np.zeros(grid.shape, dtype=values.dtype)
    nearest = (np.floor(place + 0.5).astype(int) for place in grid.positions)
    indices = [np.clip(index, 0, size - 1) for size, index in zip(values.shape, nearest, strict=True)]
    result[grid.inside] = values[np.ix_(*indices)]
    return grid.to_scan(result)


def _cover(marked: NDArray[np.bool_]) -> slice:
    """From the first to the last True; an empty slice where there is none."""
    places = np.flatnonzero(marked)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
