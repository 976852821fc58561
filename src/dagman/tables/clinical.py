"""Encodes clinical columns as numbers; imputation values, scales and categories are learned from training patients only."""

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
    """How one column is encoded, as plain values that can be stored.

    A numeric column is standardised after missing values have been filled with the median. A categorical column is one-hot
    encoded after missing values have been filled with the most frequent category.
    """

    name: str
    fill: float | str
    "Replaces a missing value: the median or the most frequent category of the training patients."
    indicator: bool
    "Whether a further feature is 1 where the value was missing."
    mean: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()
    "Categories that occur in training; empty for a numeric column."

    @property
    def names(self) -> list[str]:
        """Names of the features that this column yields."""
        features = [f"{self.name}={category}" for category in self.categories] or [self.name]
        return features + ([f"{self.name} missing"] if self.indicator else [])

    def encode(self, value: float | str | None) -> list[float]:
        """Return the features of one value; a category that does not occur in training is encoded as all zeros."""
        missing = [float(value is None)] if self.indicator else []
        filled = self.fill if value is None else value
        if self.categories:
            return [float(_as_category(filled) == category) for category in self.categories] + missing
        return [(float(filled) - self.mean) / self.scale, *missing]


@dataclass(frozen=True, kw_only=True)
class ClinicalDesign:
    """The encoding of several clinical columns, fitted to the training patients and applicable to any patient."""

    columns: tuple[ClinicalColumn, ...]

    @property
    def names(self) -> list[str]:
        """Names of the features, in order."""
        return [name for column in self.columns for name in column.names]

    def encode(self, patients: Sequence[Values]) -> Floats:
        """Encode n patients as an n x k array of k features."""
        rows = [[number for column in self.columns for number in column.encode(values[column.name])] for values in patients]
        return np.array(rows, dtype=np.float64).reshape(len(patients), len(self.names))


def fit_clinical(patients: Sequence[Values], categorical: Sequence[str] = ()) -> ClinicalDesign:
    """Fit the encoding to the training patients.

    Args:
        patients: clinical values of each training patient, all with the same columns.
        categorical: names of the columns that hold text (see `list_categorical`).

    Raises:
        TaskError: if a column has no value in any patient.
    """
    names = list(patients[0]) if patients else []
    return ClinicalDesign(columns=tuple(_fit_column(name, [p[name] for p in patients], name in categorical) for name in names))


def list_categorical(patients: Sequence[Values]) -> list[str]:
    """List the columns that hold text in at least one patient."""
    return [name for name in (patients[0] if patients else ()) if any(isinstance(p[name], str) for p in patients)]


def count_missing(patients: Sequence[Values]) -> dict[str, int]:
    """Count the patients without a value, by column."""
    return {name: sum(p[name] is None for p in patients) for name in (patients[0] if patients else ())}


def merge_clinical(rows: Sequence[Values]) -> dict[str, float | str | None]:
    """Merge the values of a patient's items: the mean of numbers, or the most frequent category (the first one in a tie)."""
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
        most_frequent = min(counts, key=lambda category: (-counts[category], category))
        return ClinicalColumn(name=name, fill=most_frequent, indicator=indicator, categories=tuple(sorted(counts)))
    numbers = np.array(known, dtype=np.float64)
    fill = float(np.median(numbers))
    filled = np.append(numbers, np.full(len(values) - len(known), fill))
    scale = float(filled.std())
    # The standard deviation of a constant column can be a rounding error instead of 0.
    scale = scale if scale > 1e-12 * (abs(fill) + 1) else 1.0
    return ClinicalColumn(name=name, fill=fill, indicator=indicator, mean=float(filled.mean()), scale=scale)


def _as_category(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_clinical_columns(
    columns: Columns, names: Sequence[str], *, roles: Mapping[str, str | None]
) -> dict[str, list[float | str | None]]:
    """Read the named clinical columns as numbers or categories.

    Args:
        columns: the table's columns.
        names: names of the clinical columns.
        roles: the columns used as label, time and event.

    Raises:
        TableError: if a clinical column is also the label, time or event.
    """
    for role, name in roles.items():
        if name in names:
            do = f"Remove it from --clinical: it would leak the {role} to be predicted"
            raise TableError(f"column '{name}' is both the {role} and clinical", where=columns.path, do=do)
    return {name: columns.numbers_or_words(name) for name in names}


def note_many_categories(clinicals: Mapping[str, Sequence[float | str | None]], patients: int) -> list[Note]:
    """Note columns of free text: with nearly one category per patient, they carry no information about other patients."""
    notes = []
    for name, values in clinicals.items():
        words = {value for value in values if isinstance(value, str)}
        if len(words) > max(10, patients // 4):
            notes.append(inform(f"clinical column '{name}' holds {len(words)} different words: each becomes a separate category"))
    return notes
