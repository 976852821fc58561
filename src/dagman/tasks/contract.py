"""Record what a saved model was trained on, so that it is not silently applied to anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dagman.errors import TaskError
from dagman.records.counts import count_noun, list_some
from dagman.tables.items import Item

_UNITS = {"scan": "whole scans", "structure": "structures (masks)", "point": "points (centers)"}
_REMEDY = {
    "scan": "Give the scans themselves, or a table without masks and points",
    "structure": "Give a table with the columns scan and mask (and label_value, if a mask holds several structures)",
    "point": "Give a table with the columns scan, center_x_mm, center_y_mm and center_z_mm",
}


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model was trained on, without names of patients."""

    units: tuple[str, ...]
    "Kinds of its training items: scan, structure or point."
    clinical: tuple[str, ...] = ()
    "Clinical columns that it needs."
    items: int = 0
    patients: int = 0
    scans: tuple[str, ...] = field(default=(), repr=False)
    "Content hashes of the training scans."
    labels: tuple[str, ...] = ()
    "Names of the classes or structures that it predicts; empty for a number or a risk."
    spacing: float | None = None
    "Voxel size of its input in mm; None: chosen from each structure's size."
    modalities: tuple[str, ...] = ()
    "Modalities of the training scans; empty if not recorded."

    def refuse_other_units(self, items: Sequence[Item]) -> None:
        """Refuse items of a kind that the model was not trained on.

        Raises:
            TaskError: There is such an item; the message describes the input that is needed.
        """
        found = Counter(find_unit(item) for item in items)
        other = [unit for unit in found if unit not in self.units]
        if other:
            names = list_some((item.name for item in items if find_unit(item) in other), limit=3)
            trained = " and ".join(_UNITS[unit] for unit in self.units)
            count = sum(found[unit] for unit in other)
            given = " or ".join(_UNITS[unit] for unit in other)
            what = (
                f"the model was trained on {trained}, but {count_noun(count, 'item was', 'items were')} given as {given} ({names})"
            )
            raise TaskError(what, do=_REMEDY[self.units[0]])

    def refuse_missing_columns(self, items: Sequence[Item]) -> None:
        """Refuse items without the clinical columns that the model needs.

        Raises:
            TaskError: A column is missing.
        """
        missing = [name for name in self.clinical if any(name not in item.clinical for item in items)]
        if missing:
            columns = ("column " if len(missing) == 1 else "columns ") + ", ".join(f"'{name}'" for name in missing)
            do = "Give a table with a column scan and these columns, or the scans and --clinical TABLE (with a column patient)"
            raise TaskError(f"the model needs the clinical {columns}", do=do)

    def note_training_items(self, hashes: Sequence[str]) -> list[str]:
        """Return a note if any of the items' scans (by content hash) were used to train the model."""
        seen = set(self.scans)
        trained = sum(content in seen for content in hashes)
        if not trained:
            return []
        count = count_noun(trained, f"of {len(hashes)} items is of a scan", f"of {len(hashes)} items are of scans")
        return [f"{count} the model was trained on: their predictions do not generalise to new scans"]

    def to_values(self) -> dict[str, Any]:
        """Return the contract as plain values for JSON."""
        return asdict(self)


def make_contract(
    items: Sequence[Item],
    hashes: Sequence[str],
    clinical: Sequence[str] = (),
    *,
    units: Sequence[str] = (),
    labels: Sequence[str] = (),
    spacing: float | None = None,
    modalities: Sequence[str] = (),
) -> Contract:
    """Make the contract of a model.

    Args:
        items: The training items.
        hashes: Content hashes of their scans.
        clinical: Clinical columns that the model needs.
        units: Kinds of items; by default those of `items`.
        labels: Names of the predicted classes or structures.
        spacing: Voxel size in mm; None if chosen for each structure.
        modalities: Modalities of the training scans.
    """
    return Contract(
        units=tuple(units) or tuple(sorted({find_unit(item) for item in items})),
        labels=tuple(labels),
        spacing=spacing,
        modalities=tuple(sorted(set(modalities))),
        clinical=tuple(clinical),
        items=len(items),
        patients=len({item.patient for item in items}),
        scans=tuple(sorted(set(hashes))),
    )


def read_contract(values: Mapping[str, Any] | None) -> Contract | None:
    """Read a contract from the values of `Contract.to_values`; None for a model that was saved without one."""
    if values is None:
        return None
    listed = {name: tuple(values.get(name) or ()) for name in ("units", "clinical", "scans", "labels", "modalities")}
    return Contract(items=int(values["items"]), patients=int(values["patients"]), spacing=values.get("spacing"), **listed)


def find_unit(item: Item) -> str:
    """Return the kind of an item: a structure if it has a mask, a point if it has a center, otherwise a scan."""
    if item.mask is not None:
        return "structure"
    return "scan" if item.center_mm is None else "point"
