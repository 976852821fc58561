"""Clinical columns as numbers: what is missing is filled, and categories are named, by the training patients alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dagman.errors import TableError, TaskError
from dagman.notes import Note, inform
from dagman.tables.columns import Columns

Floats = NDArray[np.float64]
Values = Mapping[str, float | str | None]
"""A patient's clinical values by column; None where missing."""


@dataclass(frozen=True, kw_only=True)
class ClinicalColumn:
    """How one column becomes numbers, as plain values that can be stored.

    A number is filled with `fill` (median), then standardised with `mean` and `scale`; a category is one of `categories`, one
    number each, filled with the most frequent. `indicator`: one more number says whether the value was missing.
    """

    name: str
    fill: float | str
    indicator: bool
    mean: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of its numbers."""
        own = [f"{self.name}={category}" for category in self.categories] or [self.name]
        return own + ([f"{self.name} missing"] if self.indicator else [])

    def encode(self, value: float | str | None) -> list[float]:
        """Its numbers; a category that training did not hold is 0 throughout."""
        missing = [float(value is None)] if self.indicator else []
        filled = self.fill if value is None else value
        if self.categories:
            return [float(_as_category(filled) == category) for category in self.categories] + missing
        return [(float(filled) - self.mean) / self.scale, *missing]


@dataclass(frozen=True, kw_only=True)
class ClinicalDesign:
    """Clinical columns as numbers, fitted to some patients and applied to any."""

    columns: tuple[ClinicalColumn, ...]

    @property
    def names(self) -> list[str]:
        """Names of the numbers, in order."""
        return [name for column in self.columns for name in column.names]

    def encode(self, patients: Sequence[Values]) -> Floats:
        """n x k."""
        rows = [[number for column in self.columns for number in column.encode(values[column.name])] for values in patients]
        return np.array(rows, dtype=np.float64).reshape(len(patients), len(self.names))


def fit_clinical(patients: Sequence[Values], categorical: Sequence[str] = ()) -> ClinicalDesign:
    """Learn fills, scales and categories; `categorical` names the columns that hold text (see `list_categorical`).

    Raises TaskError for a column without a single value.
    """
    names = list(patients[0]) if patients else []
    return ClinicalDesign(columns=tuple(_fit_column(name, [p[name] for p in patients], name in categorical) for name in names))


def list_categorical(patients: Sequence[Values]) -> list[str]:
    """Columns that hold text in at least one patient."""
    return [name for name in (patients[0] if patients else ()) if any(isinstance(p[name], str) for p in patients)]


def count_missing(patients: Sequence[Values]) -> dict[str, int]:
    """Patients without a value, by column."""
    return {name: sum(p[name] is None for p in patients) for name in (patients[0] if patients else ())}


def merge_clinical(rows: Sequence[Values]) -> dict[str, float | str | None]:
    """One patient's values from those of several items: the mean of numbers, the most frequent category, the first of equals."""
    merged: dict[str, float | str | None] = {}
    for name in rows[0]:
        known = [row[name] for row in rows if row[name] is not None]
        numbers = [value for value in known if isinstance(value, float)]
        if not known:
            merged[name] = None
        elif len(numbers) == len(known):
            merged[name] = float(np.mean(numbers))
        else:
            merged[name] = Counter(_as_category(value) for value in known).most_common(1)[0][0]
    return merged


def _fit_column(name: str, values: list[float | str | None], categorical: bool) -> ClinicalColumn:
    known = [value for value in values if value is not None]
    if not known:
        raise TaskError(
            f"clinical column '{name}' is empty in all training patients", do="Remove it from --clinical, or fill it in"
        )
    indicator = len(known) < len(values)
    if categorical:
        counts = Counter(_as_category(value) for value in known)
        most = min(counts, key=lambda category: (-counts[category], category))
        return ClinicalColumn(name=name, fill=most, indicator=indicator, categories=tuple(sorted(counts)))
    numbers = np.array(known, dtype=np.float64)
    fill = float(np.median(numbers))
    filled = np.append(numbers, np.full(len(values) - len(known), fill))
    scale = float(filled.std())
    # A constant column has a deviation of rounding errors.
    scale = scale if scale > 1e-12 * (abs(fill) + 1) else 1.0
    return ClinicalColumn(name=name, fill=fill, indicator=indicator, mean=float(filled.mean()), scale=scale)


def _as_category(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_clinical_columns(
    columns: Columns, names: Sequence[str], *, roles: Mapping[str, str | None]
) -> dict[str, list[float | str | None]]:
    """Numbers or words of the named columns; raises TableError where one of them is what is to be predicted, by its role."""
    for what, name in roles.items():
        if name in names:
            do = f"Remove it from --clinical: it would leak the {what} to be predicted"
            raise TableError(f"column '{name}' is both the {what} and clinical", where=columns.path, do=do)
    return {name: columns.numbers_or_words(name) for name in names}


def note_many_categories(clinicals: Mapping[str, Sequence[float | str | None]], patients: int) -> list[Note]:
    """A column of free text becomes nearly a category a patient, which says nothing about others."""
    notes = []
    for name, values in clinicals.items():
        words = {value for value in values if isinstance(value, str)}
        if len(words) > max(10, patients // 4):
            notes.append(inform(f"clinical column '{name}' holds {len(words)} different words: each becomes a separate category"))
    return notes
