"""Resampling along the axes of a grid: anti-aliased for images, nearest for labels.

Down-sampling with plain linear interpolation folds noise and fine texture into false structure. Here every output voxel is a
triangle-weighted mean as wide as the output spacing (Turkowski 1990), corrected so that constants and linear ramps stay
exactly what they are; up-sampling is linear. The kernel is separable, so each axis has one sparse matrix, and a volume is
done plane by plane: one plane fits in the cache, and no copy of the input is made. Single-threaded and in a fixed order of
summation, so that the result does not depend on how many workers or threads there are.
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
"""Largest grid that is made, in voxels; more than any scanner gives, so that a wrong header cannot fill the memory."""
_TURNED = 32
"""Rows that are exchanged for columns at once."""
_MARKED = 2**20
"""Largest label value up to which labels are listed by a mark for each."""
_MOST_HELD = 8
"""Planes that are kept as floating point while output planes use them in turn."""
MOST_TAPS = 10_000
"""Widest kernel, in voxels to each side, for the same reason: 20 mm of voxels 0.002 mm apart."""


def resample_voxels(
    voxels: NDArray,
    affine: Affine,
    spacing: float | tuple[float, float, float],
    *,
    finish: Callable[[NDArray[np.float32]], None] | None = None,
    dtype: type[np.float32] | type[np.int16] = np.float32,
) -> tuple[NDArray, Affine]:
    """Voxels X Y Z and affine at another spacing (mm), along the same axes; the outer corner of the first voxel stays.

    finish: changes the float32 values of a plane in place, while they are in the cache, before they are stored as `dtype`.
    Raises ScanError when the new grid or the kernel would be absurdly large, which a wrong spacing in a header causes.
    """
    wanted = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
    steps = wanted / affine.spacing
    # Half up; the tolerance lets a spacing kept as float32 (NIfTI) and as decimals (DICOM) fall on the same side.
    shape = [max(1, int(size / step + 0.501)) for size, step in zip(voxels.shape, steps, strict=True)]
    if float(np.prod(shape, dtype=np.float64)) > MOST_VOXELS:
        size = " x ".join(map(str, shape))
        raise ScanError(f"would have {size} voxels at {wanted[0]:g} mm", do="Check the spacing in its header")
    weights = [
        axis_weights(old, (np.arange(new) + 0.5) * step - 0.5, float(step))
        for old, new, step in zip(voxels.shape, shape, steps, strict=True)
    ]
    return apply_weights(voxels, weights, finish=finish, dtype=dtype), affine.rescale(steps.tolist())


def axis_weights(size: int, positions: NDArray[np.float64], step: float) -> scipy.sparse.csr_array:
    """The sparse matrix (positions, size) that samples an axis of `size` voxels at `positions`, `step` voxels apart.

    Positions are voxel indices with fractions. The kernel reaches `max(1, step)` voxels to each side. Beyond its ends the axis
    is mirrored, as often as needed. Raises ScanError when a sample would take more voxels together than any header means.
    """
    reach = max(1.0, step)
    if reach > MOST_TAPS:
        raise ScanError(f"its voxels are {step:.3g} times as closely spaced as requested", do="Check the spacing in its header")
    taps = np.floor(positions)[:, None] + np.arange(-np.ceil(reach) + 1, np.ceil(reach) + 1)
    distance = taps - positions[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(distance) / reach)
    # A sampled triangle of broken width has its centre of mass up to 0.05 voxels off, which changes from voxel to voxel.
    # Tilting it restores mass one and centre zero: constants and ramps come out exact.
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
    """Indices beyond an axis of `size` voxels, mirrored at its outer edges (c b a | a b c | c b a) until they lie inside."""
    folded = np.mod(indices, 2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def apply_weights(
    voxels: NDArray,
    weights: Sequence[scipy.sparse.csr_array],
    *,
    finish: Callable[[NDArray[np.float32]], None] | None = None,
    dtype: type[np.float32] | type[np.int16] = np.float32,
) -> NDArray:
    """Sample voxels X Y Z with one matrix (new size, old size) an axis, from `axis_weights`; in C order.

    `finish`, `dtype`: as for `resample_voxels`.
    """
    # In memory order and without negative strides, whatever the axis order and flips of the file were: twice as fast.
    matrices = [matrix[:, ::-1] if stride < 0 else matrix for matrix, stride in zip(weights, voxels.strides, strict=True)]
    forward = voxels[tuple(slice(None, None, -1) if stride < 0 else slice(None) for stride in voxels.strides)]
    order = np.argsort([-stride for stride in forward.strides], kind="stable")
    planes, (outer, middle, inner) = forward.transpose(order), (matrices[axis] for axis in order)

    result = np.empty([matrix.shape[0] for matrix in weights], dtype=dtype)
    target = result.transpose(*order[:1], *order[:0:-1])
    turned = np.empty((planes.shape[2], middle.shape[0]), dtype=np.float32)
    done = np.empty((_TURNED, *target.shape[1:]), dtype=dtype)
    for index, plane in enumerate(_mix_planes(planes, outer)):
        _turn(middle @ plane, turned)
        sampled = inner @ turned
        if finish is not None:
            finish(sampled)
        place = index % _TURNED
        done[place] = sampled
        if place == _TURNED - 1 or index == len(target) - 1:
            # Several at once, so that what lies side by side in the result is written together.
            target[index - place : index + 1] = done[: place + 1]
    return result


def _mix_planes(planes: NDArray, weights: scipy.sparse.csr_array) -> Iterator[NDArray[np.float32]]:
    """The weighted sums of planes, one a row of the matrix, in one array that is used again."""
    mixed, term = np.empty(planes.shape[1:], dtype=np.float32), np.empty(planes.shape[1:], dtype=np.float32)
    held: dict[int, NDArray] = {}
    exact = planes.dtype != np.float32 and np.can_cast(planes.dtype, np.float32)
    for first, last in pairwise(weights.indptr.tolist()):
        taps = weights.indices[first:last].tolist()
        if exact and len(taps) <= _MOST_HELD:
            # Made floating point once, not by each output plane that uses them.
            held = {tap: held[tap] if tap in held else planes[tap].astype(np.float32) for tap in taps}
        else:
            held = {tap: planes[tap] for tap in taps}
        if not taps:
            mixed.fill(0.0)
        for place, (tap, weight) in enumerate(zip(taps, weights.data[first:last], strict=True)):
            np.multiply(held[tap], weight, out=term if place else mixed)
            if place:
                mixed += term
        yield mixed


def _turn(plane: NDArray[np.float32], out: NDArray) -> None:
    """Exchange the axes of a plane, some rows at a time, so that they stay in the cache: a third of the time of one copy."""
    for start in range(0, len(plane), _TURNED):
        out[:, start : start + _TURNED] = plane[start : start + _TURNED].T


def resample_labels(labels: NDArray, affine: Affine, target: Affine, shape: Sequence[int]) -> NDArray[np.int32]:
    """Labels of a map X Y Z on another grid (affine and shape), nearest voxel; any two grids, also turned; 0 outside."""
    change = np.linalg.inv(affine.matrix) @ target.matrix
    # Halfway between two voxels (1 mm to 2 mm) rounding noise would choose; the nudge takes the upper one of the target's axes.
    offset = change[:3, 3] + change[:3, :3] @ np.full(3, 1e-6)
    result: NDArray[np.int32] = scipy.ndimage.affine_transform(
        to_labels(labels), change[:3, :3], offset, output_shape=tuple(shape), order=0, mode="grid-constant", cval=0
    )
    return result


def to_labels(values: NDArray) -> NDArray[np.int32]:
    """Values of a label map as int32; floating point is rounded."""
    return np.rint(values).astype(np.int32) if np.issubdtype(values.dtype, np.floating) else values.astype(np.int32)


def list_values(labels: NDArray) -> list[int]:
    """The values that labels hold, rising; floating point is rounded."""
    values = labels if np.issubdtype(labels.dtype, np.integer) else np.rint(labels).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > _MARKED:
        return [int(value) for value in np.unique(values)]
    # Marks instead of a sort: a hundredth of the time for the millions of voxels of a scan.
    seen = np.zeros(int(values.max(initial=0)) + 1, dtype=bool)
    seen[values] = True
    return [int(value) for value in np.flatnonzero(seen)]
