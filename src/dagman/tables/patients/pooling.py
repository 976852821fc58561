"""Items pooled to patients: an outcome is a patient's, however many lesions were drawn in how many scans."""

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
    """n patients, in the order of their names; `members[i]` are the places of the i-th one's items among those given."""

    names: tuple[str, ...]
    items: tuple[Item, ...] = field(repr=False)
    "The first item of each: it holds the patient's label, time, event and split."
    members: tuple[NDArray[np.int64], ...] = field(repr=False)
    clinical: tuple[dict[str, float | str | None], ...] = field(repr=False)
    "Values by column: the mean of a patient's numbers, the most frequent category."

    def __len__(self) -> int:
        return len(self.names)

    @property
    def times(self) -> Floats:
        """Time of each patient, in the table's unit."""
        return np.array([item.time for item in self.items], dtype=np.float64)

    @property
    def events(self) -> NDArray[np.bool_]:
        """Whether each patient's event was seen; False is censored."""
        return np.array([item.event for item in self.items], dtype=bool)

    @property
    def splits(self) -> NDArray | None:
        """The given split of each patient, or None when the table has none."""
        return None if any(item.split is None for item in self.items) else np.array([item.split for item in self.items])

    def average(self, values: NDArray) -> Floats:
        """Rows of items (N x p) to rows of patients (n x p): the mean over each one's items."""
        return np.stack([np.asarray(values, dtype=np.float64)[members].mean(axis=0) for members in self.members])

    def take_highest(self, values: NDArray) -> Floats:
        """Values of items (N) to values of patients (n): the highest of each one's items."""
        return np.array([np.asarray(values, dtype=np.float64)[members].max() for members in self.members])

    def list_members(self, rows: Sequence[int] | NDArray) -> NDArray[np.int64]:
        """Places of all items of some patients."""
        return np.concatenate([self.members[row] for row in rows]) if len(rows) else np.array([], dtype=np.int64)


def pool_patients(items: Sequence[Item]) -> PooledPatients:
    """Items of one patient together; raises TableError naming the patients whose items disagree on label, time or event."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.patient, []).append(place)
    names = tuple(sorted(places))
    for what in ("label", "time", "event"):
        torn = [name for name in names if len({getattr(items[place], what) for place in places[name]}) > 1]
        if torn:
            do = "Write one outcome per patient, the same in all rows of that patient"
            raise TableError(f"the rows of one patient differ in their {what}: {list_some(torn)}", do=do)
    members = tuple(np.array(places[name], dtype=np.int64) for name in names)
    return PooledPatients(
        names=names,
        items=tuple(items[of[0]] for of in members),
        members=members,
        clinical=tuple(merge_clinical([items[place].clinical for place in of]) for of in members),
    )
