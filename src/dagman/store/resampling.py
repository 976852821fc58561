"""Resamples grids along their axes: anti-aliased for images, nearest voxel for labels.

Downsampling with linear interpolation turns noise and fine texture into aliasing. Here every output voxel is a triangle-weighted
mean as wide as the output spacing (Turkowski 1990), corrected so that constants and linear ramps are reproduced exactly;
upsampling is linear. The kernel is separable, so each axis has one sparse matrix. A volume is processed plane by plane, since a
plane fits in the cache and the input need not be copied. The code is single-threaded with a fixed order of summation, so that the
result does not depend on the number of workers or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import scipy.ndimage
import scipy.sparse
from numpy.typing import NDArray

from dagman.errors import ScanError
from dagman.scans.affine import Affine

MOST_VOXELS = 2**31
"""Largest grid in voxels, which is more than any scanner produces, so that a wrong header cannot fill the memory."""
_BLOCK_ROWS = 32
"""Number of rows that are transposed, and of planes that are stored, at a time."""
_LARGEST_MARKED = 2**20
"""Largest label value for which values are listed with an array of marks instead of a sort."""
_MOST_CACHED = 8
"""Largest number of input planes kept as float32 while consecutive output planes use them."""
MOST_TAPS = 10_000
"""Widest kernel, in voxels to each side, also to protect against wrong headers: 20 mm of voxels of 0.002 mm."""


def resample_voxels(
    voxels: NDArray,
    affine: Affine,
    spacing: float | tuple[float, float, float],
    *,
    finish: Callable[[NDArray[np.float32]], None] | None = None,
    dtype: type[np.float32] | type[np.int16] = np.float32,
) -> tuple[NDArray, Affine]:
    """Resample voxels to a different spacing along the same axes; the outer corner of the first voxel keeps its position.

    Args:
        voxels: X Y Z.
        affine: affine of the voxels.
        spacing: new voxel size in mm.
        finish: changes the float32 values of a plane in place, while they are in the cache, before they are stored.
        dtype: type of the result.

    Returns:
        The resampled voxels and their affine.

    Raises:
        ScanError: if the new grid or the kernel is absurdly large, because of a wrong spacing in a header.
    """
    target = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
    steps = target / affine.spacing
    # Rounded half up; with the tolerance, a spacing stored as float32 (NIfTI) and as decimals (DICOM) gives the same shape.
    shape = [max(1, int(size / step + 0.501)) for size, step in zip(voxels.shape, steps, strict=True)]
    if float(np.prod(shape, dtype=np.float64)) > MOST_VOXELS:
        size = " x ".join(map(str, shape))
        raise ScanError(f"would have {size} voxels at {target[0]:g} mm", do="Check the spacing in its header")
    weights = [
        axis_weights(old, (np.arange(new) + 0.5) * step - 0.5, float(step))
        for old, new, step in zip(voxels.shape, shape, steps, strict=True)
    ]
    return apply_weights(voxels, weights, finish=finish, dtype=dtype), affine.rescale(steps.tolist())


def axis_weights(size: int, positions: NDArray[np.float64], step: float) -> scipy.sparse.csr_array:
    """Return the sparse matrix (positions, size) that samples one axis, which is mirrored beyond its ends as often as needed.

    Args:
        size: number of voxels along the axis.
        positions: fractional voxel indices of the samples.
        step: distance between samples in voxels; the kernel extends `max(1, step)` voxels to each side.

    Raises:
        ScanError: if the kernel is absurdly wide, because of a wrong spacing in a header.
    """
    reach = max(1.0, step)
    if reach > MOST_TAPS:
        raise ScanError(f"its voxels are {step:.3g} times as closely spaced as requested", do="Check the spacing in its header")
    taps = np.floor(positions)[:, None] + np.arange(-np.ceil(reach) + 1, np.ceil(reach) + 1)
    distance = taps - positions[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(distance) / reach)
    # The centre of mass of a sampled triangle of fractional width is off by up to 0.05 voxels, differently for each voxel.
    # Tilting the triangle restores mass 1 and centre 0, so that constants and ramps are reproduced exactly.
    mass, first, second = (np.sum(weights * distance**power, axis=1, keepdims=True) for power in range(3))
    weights *= (second - first * distance) / np.maximum(mass * second - first**2, np.finfo(np.float64).tiny)
    on_voxel = (second == 0.0).ravel()
    weights[on_voxel] = distance[on_voxel] == 0.0
    rows = np.repeat(np.arange(len(positions)), taps.shape[1])
    columns = mirror_indices(taps.astype(np.int64).ravel(), size)
    matrix = scipy.sparse.csr_array((weights.ravel().astype(np.float32), (rows, columns)), shape=(len(positions), size))
    matrix.eliminate_zeros()
    return matrix


def mirror_indices(indices: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Mirror indices at the outer edges of an axis of `size` voxels (c b a | a b c | c b a), as often as needed."""
    folded = np.mod(indices, 2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def apply_weights(
    voxels: NDArray,
    weights: Sequence[scipy.sparse.csr_array],
    *,
    finish: Callable[[NDArray[np.float32]], None] | None = None,
    dtype: type[np.float32] | type[np.int16] = np.float32,
) -> NDArray:
    """Sample voxels with one matrix per axis.

    Args:
        voxels: X Y Z.
        weights: matrices (new size, old size) from `axis_weights`.
        finish: as for `resample_voxels`.
        dtype: as for `resample_voxels`.

    Returns:
        The sampled voxels, X Y Z in C order.
    """
    # In memory order and without negative strides, for any axis order and flips of the file, which is twice as fast.
    matrices = [matrix[:, ::-1] if stride < 0 else matrix for matrix, stride in zip(weights, voxels.strides, strict=True)]
    forward = voxels[tuple(slice(None, None, -1) if stride < 0 else slice(None) for stride in voxels.strides)]
    order = np.argsort([-stride for stride in forward.strides], kind="stable")
    planes, (outer, middle, inner) = forward.transpose(order), (matrices[axis] for axis in order)

    result = np.empty([matrix.shape[0] for matrix in weights], dtype=dtype)
    target = result.transpose(*order[:1], *order[:0:-1])
    transposed = np.empty((planes.shape[2], middle.shape[0]), dtype=np.float32)
    done = np.empty((_BLOCK_ROWS, *target.shape[1:]), dtype=dtype)
    for index, plane in enumerate(_mix_planes(planes, outer)):
        _transpose(middle @ plane, transposed)
        sampled = inner @ transposed
        if finish is not None:
            finish(sampled)
        slot = index % _BLOCK_ROWS
        done[slot] = sampled
        if slot == _BLOCK_ROWS - 1 or index == len(target) - 1:
            # Several planes at a time, so that neighbouring values of the result are written together.
            target[index - slot : index + 1] = done[: slot + 1]
    return result


def _mix_planes(planes: NDArray, weights: scipy.sparse.csr_array) -> Iterator[NDArray[np.float32]]:
    """Yield the weighted sum of planes for each row of the matrix, always in the same array."""
    mixed, term = np.empty(planes.shape[1:], dtype=np.float32), np.empty(planes.shape[1:], dtype=np.float32)
    cached: dict[int, NDArray] = {}
    is_exact = planes.dtype != np.float32 and np.can_cast(planes.dtype, np.float32)
    for first, last in pairwise(weights.indptr.tolist()):
        taps = weights.indices[first:last].tolist()
        if is_exact and len(taps) <= _MOST_CACHED:
            # Converted to floating point once, instead of for each output plane that uses them.
            cached = {tap: cached[tap] if tap in cached else planes[tap].astype(np.float32) for tap in taps}
        else:
            cached = {tap: planes[tap] for tap in taps}
        if not taps:
            mixed.fill(0.0)
        for number, (tap, weight) in enumerate(zip(taps, weights.data[first:last], strict=True)):
            np.multiply(cached[tap], weight, out=term if number else mixed)
            if number:
                mixed += term
        yield mixed


def _transpose(plane: NDArray[np.float32], out: NDArray) -> None:
    """Transpose a plane in blocks of rows that fit in the cache, which takes a third of the time of a single copy."""
    for start in range(0, len(plane), _BLOCK_ROWS):
        out[:, start : start + _BLOCK_ROWS] = plane[start : start + _BLOCK_ROWS].T


def resample_labels(labels: NDArray, affine: Affine, target: Affine, shape: Sequence[int]) -> NDArray[np.int32]:
    """Resample labels to another grid, which may be rotated, by nearest voxel; 0 outside the map.

    Args:
        labels: X Y Z.
        affine: affine of the labels.
        target: affine of the other grid.
        shape: shape of the other grid.
    """
    change = np.linalg.inv(affine.matrix) @ target.matrix
    # Halfway between two voxels (1 mm to 2 mm), rounding errors would decide; the offset selects the upper one along each axis.
    offset = change[:3, 3] + change[:3, :3] @ np.full(3, 1e-6)
    result: NDArray[np.int32] = scipy.ndimage.affine_transform(
        to_labels(labels), change[:3, :3], offset, output_shape=tuple(shape), order=0, mode="grid-constant", cval=0
    )
    return result


def to_labels(values: NDArray) -> NDArray[np.int32]:
    """Convert the values of a label map to int32; floating-point values are rounded."""
    return np.rint(values).astype(np.int32) if np.issubdtype(values.dtype, np.floating) else values.astype(np.int32)


def list_values(labels: NDArray) -> list[int]:
    """List the values that occur in labels, in ascending order; floating-point values are rounded."""
    values = labels if np.issubdtype(labels.dtype, np.integer) else np.rint(labels).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > _LARGEST_MARKED:
        return [int(value) for value in np.unique(values)]
    # Marks instead of a sort take a hundredth of the time for the millions of voxels of a scan.
    seen = np.zeros(int(values.max(initial=0)) + 1, dtype=bool)
    seen[values] = True
    return [int(value) for value in np.flatnonzero(seen)]
