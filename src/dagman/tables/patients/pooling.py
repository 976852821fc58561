"""Pools items by patient: an outcome belongs to a patient, who may have several scans and lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dagman.errors import TableError
from dagman.records.counts import list_some
from dagman.tables.clinical import merge_clinical
from dagman.tables.items import Item

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledPatients:
    """The n patients of N items, sorted by name."""

    names: tuple[str, ...]
    items: tuple[Item, ...] = field(repr=False)
    "The first item of each patient, which holds the patient's label, time, event and split."
    members: tuple[NDArray[np.int64], ...] = field(repr=False)
    "Indices of each patient's items among the N."
    clinical: tuple[dict[str, float | str | None], ...] = field(repr=False)
    "Clinical values by column: the mean of a patient's numbers, or the most frequent category."

    def __len__(self) -> int:
        return len(self.names)

    @property
    def times(self) -> Floats:
        """The time of each patient, in the table's unit."""
        return np.array([item.time for item in self.items], dtype=np.float64)

    @property
    def events(self) -> NDArray[np.bool_]:
        """Whether the event of each patient was observed; False means censored."""
        return np.array([item.event for item in self.items], dtype=bool)

    @property
    def splits(self) -> NDArray | None:
        """The given split of each patient, or None if the table has none."""
        return None if any(item.split is None for item in self.items) else np.array([item.split for item in self.items])

    def average(self, values: NDArray) -> Floats:
        """Average the rows of items (N x p) by patient (n x p)."""
        return np.stack([np.asarray(values, dtype=np.float64)[members].mean(axis=0) for members in self.members])

    def take_highest(self, values: NDArray) -> Floats:
        """Take the highest of the items' values (N) by patient (n)."""
        return np.array([np.asarray(values, dtype=np.float64)[members].max() for members in self.members])

    def list_members(self, rows: Sequence[int] | NDArray) -> NDArray[np.int64]:
        """Return the indices of all items of the given patients."""
        return np.concatenate([self.members[row] for row in rows]) if len(rows) else np.array([], dtype=np.int64)


def pool_patients(items: Sequence[Item]) -> PooledPatients:
    """Group items by patient.

    Raises:
        TableError: naming the patients whose items differ in their label, time or event.
    """
    indices: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        indices.setdefault(item.patient, []).append(index)
    names = tuple(sorted(indices))
    for outcome in ("label", "time", "event"):
        contradictory = [name for name in names if len({getattr(items[index], outcome) for index in indices[name]}) > 1]
        if contradictory:
            do = "Write one outcome per patient, the same in all rows of that patient"
            raise TableError(f"the rows of one patient differ in their {outcome}: {list_some(contradictory)}", do=do)
    members = tuple(np.array(indices[name], dtype=np.int64) for name in names)
    return PooledPatients(
        names=names,
        items=tuple(items[rows[0]] for rows in members),
        members=members,
        clinical=tuple(merge_clinical([items[row].clinical for row in rows]) for rows in members),
    )
