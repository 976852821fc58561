"""Prepare labelled scans for training, as memory maps of int16 voxels and classes, so that a cohort may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.encoder import Encoder
from dagman.errors import DagmanError, TableError, TaskError
from dagman.randomness import generator
from dagman.records.counts import list_some
from dagman.records.hashes import hash_array
from dagman.scans.scan import Modality, Scan
from dagman.store.preparation import prepare_mask, prepare_scan
from dagman.store.resampling import list_values
from dagman.tables.items import Item, align_mask, measure_cut, read_mask
from dagman.tables.structures import Structure, list_contoured

_TABLE = 2**20
"""Largest label value for which a lookup table is used."""
PLACES = 500
"""Number of voxels per structure that are stored as possible centres of crops."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """An item prepared for training, on the prepared grid (X Y Z, RAS+).

    Attributes:
        item: The item.
        voxels: Voxels, as a memory map.
        labels: Classes (0 is background), as a memory map.
        places: Some voxels of each structure (n x 3).
        modality: Modality of the scan.
        content_hash: Content hash of the scan.
        labels_hash: Hash of the classes on the scan's grid.
        contoured: Whether each structure was contoured; others are unknown, and may be anywhere that is labelled 0. None: all.
        cut: Share of the mask's label voxels that lie outside the scan.
    """

    item: Item
    voxels: NDArray[np.int16] = field(repr=False)
    labels: NDArray[np.uint8] = field(repr=False)
    places: tuple[NDArray[np.int64], ...] = field(repr=False)
    modality: Modality
    content_hash: str
    labels_hash: str
    contoured: tuple[bool, ...] | None = None
    cut: float = 0.0

    def knows(self, code: int) -> bool:
        """Whether the class `code` is known; background (0) is if all structures are."""
        if self.contoured is None:
            return True
        return all(self.contoured) if code == 0 else self.contoured[code - 1]


@dataclass(frozen=True, kw_only=True)
class RefusedScan:
    """A labelled scan that was rejected, and why."""

    item: Item
    reason: str


def prepare_cases(
    encoder: Encoder,
    items: Sequence[Item],
    structures: Sequence[Structure],
    folder: Path,
    *,
    seed: int = 0,
    notify: Callable[[str], None] = lambda text: None,
) -> tuple[list[Case], list[RefusedScan]]:
    """Prepare each item's scan and mask in `folder`, as `encoder` needs them; unusable items are rejected with a reason.

    Raises:
        TaskError: No item can be used, or a structure is in no mask or never contoured.
    """
    cases: list[Case] = []
    refused: list[RefusedScan] = []
    for number, item in enumerate(items):
        notify(f"preparing {number + 1} of {len(items)}: {item.name}")
        try:
            cases.append(_prepare_case(encoder, item, structures, folder / f"{number:06d}", seed))
        except DagmanError as error:
            refused.append(RefusedScan(item=item, reason=str(error)))
    if not cases:
        raise TaskError(f"none of {len(items)} labelled scans can be used; the first: {refused[0].reason}")
    for code, structure in enumerate(structures):
        if not any(len(case.places[code]) for case in cases):
            values = "+".join(map(str, structure.values))
            raise TaskError(f"structure '{structure.name}' (value {values}) is in no mask", do="Correct --labels, or omit it")
        if not any(case.knows(code + 1) for case in cases):
            what = f"structure '{structure.name}' is listed as contoured in no scan that can be used"
            raise TaskError(what, do="Correct the column 'contoured', or remove the structure from --labels")
    return cases, refused


def load_classes(item: Item, scan: Scan, structures: Sequence[Structure]) -> NDArray[np.uint8]:
    """Load an item's mask as classes on the grid of its scan, X Y Z.

    Raises:
        TableError: The mask is not a label map, is on another grid, is empty or holds none of the structures, or none of them was
            contoured.
    """
    return _load_classes(item, scan, structures)[0]


def _load_classes(item: Item, scan: Scan, structures: Sequence[Structure]) -> tuple[NDArray[np.uint8], float]:
    """Like `load_classes`, along with the share of the mask that lies outside the scan."""
    if item.mask is None:
        raise TableError("has no mask", where=item.name, do="Fill the column 'mask'")
    mask = read_mask(item)
    aligned = align_mask(item, mask, scan)
    classes = to_classes(aligned, structures)
    if not any(list_contoured(item.contoured, structures)):
        names = list_some(structure.name for structure in structures)
        raise TableError(f"has none of the structures contoured ({names})", where=item.name, do="Remove the row")
    if not classes.any():
        found = list_some(value for value in list_values(aligned) if value)
        wanted = ", ".join("+".join(map(str, structure.values)) for structure in structures)
        what = f"has no voxels of label {wanted} (its labels: {found})" if found else "is empty"
        do = "Correct the mask or the label, or remove the row"
        raise TableError(f"mask {item.mask.name} {what}", where=item.name, do=do)
    return classes, measure_cut(mask, aligned)


def to_classes(labels: NDArray, structures: Sequence[Structure]) -> NDArray[np.uint8]:
    """Convert labels (whole numbers of any type and shape) to classes: i for the values of structures[i - 1], otherwise 0."""
    values = labels if np.issubdtype(labels.dtype, np.integer) else np.rint(labels).astype(np.int64)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > _TABLE:
        classes = np.zeros(values.shape, dtype=np.uint8)
        for code, structure in enumerate(structures, start=1):
            classes[np.isin(values, structure.values)] = code
        return classes
    # One lookup per voxel, regardless of the number of structures.
    table = np.zeros(high + 1, dtype=np.uint8)
    for code, structure in enumerate(structures, start=1):
        table[[value for value in structure.values if 0 <= value <= high]] = code
    return np.take(table, values)


def find_structures(items: Iterable[Item]) -> list[Structure]:
    """List one structure per value in the readable masks.

    Raises:
        TaskError: There are no values, or too many.
    """
    values: set[int] = set()
    first = ""
    for item in items:
        if item.mask is None:
            continue
        try:
            values.update(list_values(read_mask(item).voxels))
        except DagmanError as error:
            # The item is rejected later, with its name.
            first = first or f"; the first: {error}"
    values.discard(0)
    if not values:
        raise TaskError(f"all masks are empty or cannot be used{first}", do="Give masks with a value above 0 inside each structure")
    if len(values) > 255:
        raise TaskError(f"the masks hold {len(values)} values", do="Name the structures: --labels liver=5,spleen=7")
    if len(values) == 1:
        return [Structure(name="structure", values=(values.pop(),))]
    return [Structure(name=f"label {value}", values=(value,)) for value in sorted(values)]


def _prepare_case(encoder: Encoder, item: Item, structures: Sequence[Structure], path: Path, seed: int) -> Case:
    scan = encoder.read(item.scan)
    classes, cut = _load_classes(item, scan, structures)
    prepared = prepare_scan(scan, encoder.preparation)
    drawn = Scan(voxels=classes.astype(np.int16), affine=scan.affine, modality="other", patient=item.patient, source=str(item.mask))
    labels = prepare_mask(drawn, prepared).astype(np.uint8)
    if not labels.any():
        raise TableError("its structure lies outside the body", where=item.name, do="Check that mask and scan belong together")
    places = []
    for code in range(1, len(structures) + 1):
        found = np.flatnonzero(labels == code)
        if len(found) > PLACES:
            found = generator(seed, "places", item.name, code).choice(found, PLACES, replace=False)
        places.append(np.stack(np.unravel_index(np.sort(found), labels.shape), axis=1))
    contoured = list_contoured(item.contoured, structures)
    return Case(
        item=item,
        voxels=_map_array(path.with_suffix(".voxels.npy"), prepared.voxels),
        labels=_map_array(path.with_suffix(".labels.npy"), labels),
        places=tuple(places),
        modality=prepared.modality,
        content_hash=prepared.content_hash,
        labels_hash=hash_array(classes),
        contoured=None if all(contoured) else contoured,
        cut=cut,
    )


def _map_array(path: Path, values: NDArray) -> NDArray:
    np.save(path, values, allow_pickle=False)
    return np.load(path, mmap_mode="r", allow_pickle=False)
