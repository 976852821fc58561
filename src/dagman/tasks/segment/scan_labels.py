"""Find the most probable class of each voxel of a scan, from class probabilities on the prepared grid, some planes at a time.

The probabilities of many classes would take more memory than everything else in a long scan, so only planes that are still needed
are held in memory.

Notation: K classes (background first), X Y Z sides of the prepared grid or of the scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import blosc2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dagman.scans.scan import Scan
from dagman.store.preparation import Box, PreparedScan, ScanGrid, place_on_scan

SLAB_VOXELS = 2**23
"""Voxels of the scan's grid whose classes are compared at once, which takes two maps of 32 MiB."""


def label_on_scan_grid(class_probabilities: Float[Tensor, "K X Y Z"], prepared: PreparedScan, scan: Scan) -> NDArray[np.uint8]:
    """Find the most probable class of each voxel of the scan, X Y Z.

    Probabilities are interpolated instead of labels, which keeps edges smooth; each class only in the box where it can exceed
    background. Voxels outside the prepared grid are background.
    """
    return label_planes(iter([(0, class_probabilities)]), 2, prepared, scan)


def label_planes(
    slabs: Iterator[tuple[int, Float[Tensor, "K _ _ _"]]], axis: int, prepared: PreparedScan, scan: Scan
) -> NDArray[np.uint8]:
    """Like `label_on_scan_grid`, from consecutive slabs of planes across `axis`, each given with the index of its first plane.

    Memory: one byte per voxel of the scan at the end, and one slab with the planes that the next one needs as well.
    """
    grid = place_on_scan(prepared, scan)
    rows, within = grid.weights[axis], grid.inside[axis]
    size = rows.shape[1]
    # The range of prepared planes that each plane of the scan needs; it can be labelled once the last of them has arrived.
    filled = np.diff(rows.indptr) > 0
    starts = rows.indptr[:-1][filled]
    lowest, highest = np.full(len(filled), size), np.full(len(filled), -1)
    if len(starts):
        lowest[filled], highest[filled] = np.minimum.reduceat(rows.indices, starts), np.maximum.reduceat(rows.indices, starts)
    lowest = np.minimum.accumulate(lowest[::-1])[::-1]
    highest = np.maximum.accumulate(highest)
    parts: list[_Part] = []
    done = 0
    held: Tensor | None = None
    start = 0
    for first, slab in slabs:
        held, start = (slab, first) if held is None else (torch.cat([held, slab], dim=axis + 1), start)
        stop = start + held.shape[axis + 1]
        ready = int(np.searchsorted(highest, stop, side="left")) if stop < size else len(highest)
        if ready > done:
            parts += _label_box(held, start, grid, axis, slice(within.start + done, within.start + ready))
            done = ready
        keep = min(max(int(lowest[done]) - start, 0), stop - start) if done < len(lowest) else stop - start
        # A copy, because the slab is overwritten by the next one.
        held, start = held.narrow(axis + 1, keep, stop - start - keep).clone(), start + keep
    held = None
    classes = np.zeros(grid.shape, dtype=np.uint8)
    for part in parts:
        classes[part.box] = part.unpack()
    return grid.to_scan(classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """Classes of a box of the scan, in RAS orientation; compressed, because labels shrink to about a hundredth."""

    box: Box
    packed: bytes = field(repr=False)

    def unpack(self) -> NDArray[np.uint8]:
        classes: NDArray[np.uint8] = blosc2.unpack_array2(self.packed)
        return classes


def _label_box(probabilities: Tensor, start: int, grid: ScanGrid, axis: int, planes: slice) -> list[_Part]:
    """Label planes of the scan across `axis`, from the probabilities of prepared planes from `start` on."""
    offset = (start if axis == 0 else 0, start if axis == 1 else 0, start if axis == 2 else 0)
    background = probabilities[0].float().numpy()
    # Interpolation between voxels where background is at least as probable cannot give a class more than background.
    boxes = {
        code: box
        for code in range(1, len(probabilities))
        if (box := grid.find_box(probabilities[code].float().numpy() > background, offset)) is not None
    }
    across = int(np.prod(grid.shape)) // grid.shape[axis]
    depth = max(1, SLAB_VOXELS // max(1, across))
    parts = []
    for first in range(planes.start, planes.stop, depth):
        slab = _replace(grid.whole, axis, slice(first, min(first + depth, planes.stop)))
        classes = np.zeros([part.stop - part.start for part in slab], dtype=np.uint8)
        most: NDArray[np.float32] | None = None
        for code, box in boxes.items():
            part = slice(max(box[axis].start, slab[axis].start), min(box[axis].stop, slab[axis].stop))
            if part.start >= part.stop:
                continue
            most = grid.interpolate(background, slab, offset) if most is None else most
            other = grid.interpolate(probabilities[code].float().numpy(), _replace(box, axis, part), offset)
            place = _replace(box, axis, slice(part.start - first, part.stop - first))
            better = other > most[place]
            classes[place][better] = code
            np.copyto(most[place], other, where=better)
        if classes.any():
            parts.append(_Part(box=slab, packed=blosc2.pack_array2(classes)))
    return parts


def _replace(box: Box, axis: int, part: slice) -> Box:
    x, y, z = (part if number == axis else one for number, one in enumerate(box))
    return x, y, z
