"""Items of a table, and the checks of one that need the voxels of its scan: its mask's grid, its point."""

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

_SLACK = 0.1
"""Voxels by which the corners of two grids may differ: headers hold rounded numbers."""


_ROUNDING = 1e-3
"""By which a label may miss its whole number: files scale what they store."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row: what is studied (a scan, a structure, a point) and what is known about it."""

    index: int
    "Row of the table, from 0."
    name: str
    "Unique in the table, and the same whatever the order of its rows."
    scan: Path | str
    "File or folder of the scan, or the id of a stored one."
    patient: str
    patient_assumed: bool = False
    "Whether nothing states the patient, so that the scan is treated as a separate patient."
    mask: Path | None = None
    label_value: int | None = None
    "The structure's value in the mask; None: everything that is not 0."
    structure: str | int | None = None
    "The structure's name, or number, in a mask that is an RTSTRUCT or SEG."
    structures: tuple[tuple[int, str], ...] = ()
    "Several of them, by name, with the value of each in the label map that they make; in place of `structure`."
    center_mm: tuple[float, float, float] | None = None
    "A point in RAS millimetres."
    contoured: frozenset[str] | None = None
    "Structures drawn in the mask, by value or name; any other is unknown here, not absent. None: all of them."
    label: str | None = None
    time: float | None = None
    event: bool | None = None
    split: str | None = None
    clinical: dict[str, float | str | None] = field(default_factory=dict)


def load_mask(item: Item, scan: Scan) -> NDArray[np.bool_]:
    """The item's structure on the grid of its scan, X Y Z bool, True inside.

    The mask may store its axes in another order or direction than the scan, and hold less or more of it (see `align_mask`).
    Raises TableError naming the item if the mask is on another grid, or holds nothing of the structure.
    """
    return select_structure(item, align_mask(item, read_mask(item), scan))


def read_mask(item: Item) -> Scan:
    """The item's label map on its own grid; of an RTSTRUCT or SEG it holds the item's structure alone, as 1, or its `structures`.

    Raises TableError if there is none, ScanError if two of its structures overlap, TableError if its values are not whole numbers.
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
            "has contours, but its scan is given by the id in a store", where=_locate(item), do="Give the scan they were drawn on"
        )
    return _read_grid(item.scan)


@functools.lru_cache(maxsize=4)
def _read_grid(scan: Path) -> Grid:
    """Several structures are drawn on one scan."""
    drawn_on = read_scan(scan)
    return drawn_on.affine, drawn_on.shape


def refuse_fractions(item: Item, labels: NDArray) -> None:
    """Raise TableError if labels are not whole numbers: of a map of probabilities, rounding would make some structure."""
    if not np.issubdtype(labels.dtype, np.floating):
        return
    off = np.abs(labels - np.rint(labels))
    if off.max(initial=0.0) > _ROUNDING:
        value = labels[np.unravel_index(off.argmax(), off.shape)]
        what = f"mask {_name_mask(item)}holds values that are not whole numbers, such as {value:.3g}"
        do = "Threshold it if it holds probabilities, or give a label map (resampled by nearest neighbour, if at all)"
        raise TableError(what, where=_locate(item), do=do)


def align_mask(item: Item, mask: Scan, scan: Scan) -> NDArray:
    """The labels of an item's mask on the grid of its scan, X Y Z.

    The mask may be smaller or larger than the scan, as programs crop them to what is drawn: its voxels must be voxels of the
    scan's lattice, beyond the mask labels are 0. Raises TableError, naming what differs, if they are not.
    """
    lattice = mask.affine.find_on(mask.shape, scan.affine, _SLACK)
    if lattice is None:
        do = "Resample it (nearest neighbour) to the scan it was drawn on"
        if mask.shape == scan.shape and np.array_equal(np.abs(mask.affine.matrix), np.eye(4)):
            do = "Its header seems to be lost: copy that of the scan, if their voxels correspond"
        what = f"mask {_name_mask(item)}is on another grid: {describe_difference(mask.affine, scan.affine)} (mask against scan)"
        raise TableError(what, where=_locate(item), do=do)
    labels = lattice.place(mask.voxels, scan.shape)
    if mask.voxels.any() and not labels.any():
        what = f"mask {_name_mask(item)}marks only voxels outside its scan"
        raise TableError(what, where=_locate(item), do="Check that it was drawn on this scan")
    return labels


def measure_cut(mask: Scan, labels: NDArray) -> float:
    """The share of a mask's label voxels that `align_mask` left out of `labels`, as they lie outside the scan."""
    drawn = int(np.count_nonzero(mask.voxels))
    return 1.0 - int(np.count_nonzero(labels)) / drawn if drawn else 0.0


def note_cut(shares: Mapping[str, float]) -> list[str]:
    """A note on the items, by name, whose masks extend beyond their scans; nothing where all lie inside."""
    cut = {name: share for name, share in shares.items() if share > 0}
    if not cut:
        return []
    what = count_noun(len(cut), "mask extends beyond its scan", "masks extend beyond their scans")
    return [
        f"{what}: up to {100 * max(cut.values()):.2g} % of the label voxels lie outside and are left out ({list_some(sorted(cut))})"
    ]


def select_structure(item: Item, labels: NDArray) -> NDArray[np.bool_]:
    """Where labels are the item's structure, True inside; raises TableError if they hold nothing of it."""
    values = np.rint(labels)
    inside: NDArray[np.bool_] = values != 0 if item.label_value is None else values == item.label_value
    if not inside.any():
        others = list_some(int(value) for value in np.unique(values) if value)
        what = "is empty" if not others else f"holds no {item.label_value} (it holds {others})"
        raise TableError(
            f"mask {_name_mask(item)}{what}", where=_locate(item), do="Correct the mask or label_value, or remove the row"
        )
    return inside


def check_points(grids: Iterable[tuple[Item, tuple[int, int, int], Affine]]) -> tuple[list[Item], list[str]]:
    """The items whose point lies in their scan (those without a point too), and a note on those that are left out.

    `grids` gives each item with its scan's shape and affine. Raises TableError if most points lie outside, saying
    whether they would lie inside if they were LPS.
    """
    kept, outside = [], []
    points = flipped = 0
    for item, shape, affine in grids:
        if item.center_mm is None or _is_inside(item.center_mm, shape, affine):
            kept.append(item)
        else:
            outside.append(item)
            x, y, z = item.center_mm
            flipped += _is_inside((-x, -y, z), shape, affine)
        points += item.center_mm is not None
    if not outside:
        return kept, []
    what = count_noun(len(outside), f"of {points} points falls outside its scan", f"of {points} points fall outside their scans")
    if 2 * len(outside) > points:
        if 2 * flipped > len(outside):
            raise TableError(
                f"{what}, but {flipped} inside with x and y negated: they appear to be LPS", do="Pass --coordinates lps"
            )
        do = "Give centers in RAS millimetres of the scan's coordinate system, not in voxels"
        raise TableError(f"{what} (item {list_some(item.name for item in outside)})", do=do)
    return kept, [f"{what}: left out (item {list_some(item.name for item in outside)})"]


def _name_mask(item: Item) -> str:
    return f"{item.mask.name} " if item.mask else ""


def _locate(item: Item) -> str:
    return f"row {item.index + 1} ({item.name})"


def _is_inside(point: tuple[float, float, float], shape: tuple[int, int, int], affine: Affine) -> bool:
    voxel = affine.to_voxel([point])[0]
    return bool(np.all(voxel >= -0.5) and np.all(voxel <= np.asarray(shape) - 0.5))
