"""Items of a table, and the checks that need an item's scan: whether its mask fits the grid and its point lies inside."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.errors import TableError
from dagman.records.counts import count_noun, list_some
from dagman.scans.affine import Affine, describe_difference
from dagman.scans.reading import read_scan
from dagman.scans.scan import Scan
from dagman.scans.structures import holds_structures, read_disjoint, read_structure
from dagman.scans.structures.reading import Grid

_GRID_TOLERANCE = 0.1
"""Distance in voxels by which the corners of two grids may differ, since headers hold rounded numbers."""

_LABEL_TOLERANCE = 1e-3
"""Difference allowed between a label and a whole number, since files may scale the values that they store."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row of a table: a scan, a structure or a point, with its patient, outcome and clinical values."""

    index: int
    "Row of the table, from 0."
    name: str
    "Unique in the table, and independent of the order of its rows."
    scan: Path | str
    "File or folder of the scan, or its id in a store."
    patient: str
    patient_assumed: bool = False
    "Whether the patient is unknown, so that the scan is treated as a separate patient."
    mask: Path | None = None
    label_value: int | None = None
    "The structure's value in the mask; None means every value except 0."
    structure: str | int | None = None
    "The structure's name or number in a mask that is an RTSTRUCT or SEG."
    structures: tuple[tuple[int, str], ...] = ()
    "Several structures of an RTSTRUCT or SEG instead of `structure`: the value in the label map to be made, and the name."
    center_mm: tuple[float, float, float] | None = None
    "A point in RAS millimetres."
    contoured: frozenset[str] | None = None
    "Structures drawn in the mask, by value or name; any other is unknown rather than absent. None means that all were drawn."
    label: str | None = None
    time: float | None = None
    event: bool | None = None
    split: str | None = None
    clinical: dict[str, float | str | None] = field(default_factory=dict)


def load_mask(item: Item, scan: Scan) -> NDArray[np.bool_]:
    """Read the mask of an item's structure on the grid of its scan: X Y Z bool, True inside.

    The mask may order or flip its axes differently from the scan, and may cover a smaller or larger region (see `align_mask`).

    Raises:
        TableError: naming the item, if the mask is on a different grid or does not contain the structure.
    """
    return select_structure(item, align_mask(item, read_mask(item), scan))


def read_mask(item: Item) -> Scan:
    """Read an item's label map on its own grid.

    From an RTSTRUCT or SEG, the map is made of the item's `structure`, with the value 1, or of its `structures`.

    Raises:
        TableError: if the item has no mask, or the values of the mask are not whole numbers.
        ScanError: if the mask cannot be read, or two of the item's structures overlap.
    """
    if item.mask is None:
        raise TableError("has no mask", where=_locate(item), do="Fill the column 'mask'")
    if item.structures:
        return read_disjoint(item.mask, dict(item.structures), lambda: _find_grid(item))
    if holds_structures(item.mask):
        return read_structure(item.mask, item.structure, lambda: _find_grid(item))
    mask = read_scan(item.mask, labels=True)
    refuse_fractions(item, mask.voxels)
    return mask


def _find_grid(item: Item) -> Grid:
    if isinstance(item.scan, str):
        raise TableError(
            "has contours, but its scan is given by its id in a store", where=_locate(item), do="Give the scan they were drawn on"
        )
    return _read_grid(item.scan)


@functools.lru_cache(maxsize=4)
def _read_grid(scan: Path) -> Grid:
    # Cached, since many structures are usually drawn on the same scan.
    reference = read_scan(scan)
    return reference.affine, reference.shape


def refuse_fractions(item: Item, labels: NDArray) -> None:
    """Raise TableError if labels are not whole numbers: rounding a map of probabilities would invent a structure."""
    if not np.issubdtype(labels.dtype, np.floating):
        return
    off = np.abs(labels - np.rint(labels))
    if off.max(initial=0.0) > _LABEL_TOLERANCE:
        value = labels[np.unravel_index(off.argmax(), off.shape)]
        what = f"mask {_name_mask(item)}holds values that are not whole numbers, such as {value:.3g}"
        do = "Threshold it if it holds probabilities, or give a label map (resampled by nearest neighbour, if at all)"
        raise TableError(what, where=_locate(item), do=do)


def align_mask(item: Item, mask: Scan, scan: Scan) -> NDArray:
    """Place the labels of an item's mask on the grid of its scan, X Y Z.

    The mask may be smaller or larger than the scan, since programs crop masks to what was drawn, but its voxels must coincide
    with those of the scan's grid, continued beyond the scan. Labels are 0 outside the mask.

    Raises:
        TableError: naming the difference, if the grids do not coincide, or if all labels lie outside the scan.
    """
    lattice = mask.affine.find_on(mask.shape, scan.affine, _GRID_TOLERANCE)
    if lattice is None:
        do = "Resample it (nearest neighbour) to the scan it was drawn on"
        if mask.shape == scan.shape and np.array_equal(np.abs(mask.affine.matrix), np.eye(4)):
            do = "It seems to have lost its header: copy the scan's header, if their voxels correspond"
        what = f"mask {_name_mask(item)}is on another grid: {describe_difference(mask.affine, scan.affine)} (mask against scan)"
        raise TableError(what, where=_locate(item), do=do)
    labels = lattice.place(mask.voxels, scan.shape)
    if mask.voxels.any() and not labels.any():
        what = f"mask {_name_mask(item)}marks only voxels outside its scan"
        raise TableError(what, where=_locate(item), do="Check that it was drawn on this scan")
    return labels


def measure_cut(mask: Scan, labels: NDArray) -> float:
    """Return the share of a mask's label voxels that lie outside the scan, and so are missing from `align_mask`'s labels."""
    drawn = int(np.count_nonzero(mask.voxels))
    return 1.0 - int(np.count_nonzero(labels)) / drawn if drawn else 0.0


def note_cut(shares: Mapping[str, float]) -> list[str]:
    """Return a note on masks that extend beyond their scans, given the shares of `measure_cut` by item; [] if none does."""
    cut = {name: share for name, share in shares.items() if share > 0}
    if not cut:
        return []
    what = count_noun(len(cut), "mask extends beyond its scan", "masks extend beyond their scans")
    return [
        f"{what}: up to {100 * max(cut.values()):.2g} % of the label voxels lie outside and are ignored ({list_some(sorted(cut))})"
    ]


def select_structure(item: Item, labels: NDArray) -> NDArray[np.bool_]:
    """Return the mask of an item's structure, True inside.

    Raises:
        TableError: if no label belongs to the structure.
    """
    values = np.rint(labels)
    inside: NDArray[np.bool_] = values != 0 if item.label_value is None else values == item.label_value
    if not inside.any():
        others = list_some(int(value) for value in np.unique(values) if value)
        what = "is empty" if not others else f"has no voxels of label {item.label_value} (its labels: {others})"
        raise TableError(
            f"mask {_name_mask(item)}{what}", where=_locate(item), do="Correct the mask or label_value, or remove the row"
        )
    return inside


def check_points(grids: Iterable[tuple[Item, tuple[int, int, int], Affine]]) -> tuple[list[Item], list[str]]:
    """Keep the items whose point lies inside their scan, and those without a point; return them and a note on the others.

    Args:
        grids: each item with the shape and affine of its scan.

    Raises:
        TableError: if most points lie outside; the message states whether they would lie inside as LPS coordinates.
    """
    inside, outside = [], []
    points = flipped = 0
    for item, shape, affine in grids:
        if item.center_mm is None or _is_inside(item.center_mm, shape, affine):
            inside.append(item)
        else:
            outside.append(item)
            x, y, z = item.center_mm
            flipped += _is_inside((-x, -y, z), shape, affine)
        points += item.center_mm is not None
    if not outside:
        return inside, []
    what = count_noun(len(outside), f"of {points} points falls outside its scan", f"of {points} points fall outside their scans")
    if 2 * len(outside) > points:
        if 2 * flipped > len(outside):
            raise TableError(
                f"{what}, but {flipped} would lie inside with x and y negated: they appear to be LPS", do="Pass --coordinates lps"
            )
        do = "Give centers in RAS millimetres of the scan's coordinate system, not in voxels"
        raise TableError(f"{what} (item {list_some(item.name for item in outside)})", do=do)
    return inside, [f"{what}: excluded (item {list_some(item.name for item in outside)})"]


def _name_mask(item: Item) -> str:
    return f"{item.mask.name} " if item.mask else ""


def _locate(item: Item) -> str:
    return f"row {item.index + 1} ({item.name})"


def _is_inside(point: tuple[float, float, float], shape: tuple[int, int, int], affine: Affine) -> bool:
    voxel = affine.to_voxel([point])[0]
    return bool(np.all(voxel >= -0.5) and np.all(voxel <= np.asarray(shape) - 0.5))
