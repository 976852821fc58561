"""Split patients into training and test sets, draw few-shot subsets, and find test scans that were used in pretraining.

Every random choice is a pure function of (seed, repeat, fold, draw, patient), so it does not depend on the order of the table's
rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dagman.errors import TaskError
from dagman.randomness import address
from dagman.records.counts import count_noun
from dagman.records.csv_file import restore_frame, write_csv

Indices = NDArray[np.int64]
REPEATS = 5
"""Default if a repeat takes only seconds. With 43 items, an AUC of 0.69 is detected in 25 % of data sets with one repeat and in
37 % with five (decision 0022)."""


def _no_items() -> Indices:
    return np.array([], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings that all tasks share: cross-validation, few-shot draws, and evaluation of the predictions."""

    folds: int = 5
    "Folds by patient."
    repeats: int | None = None
    "Repeats of the cross-validation with different folds; None: see `count_repeats`."
    shares: tuple[float, ...] = (1.0,)
    "Shares of the training patients that are labelled."
    per_class: tuple[int, ...] = ()
    "Numbers of labelled patients (per class, if there are classes)."
    draws: int = 1
    "Few-shot draws per repeat and fold."
    seed: int = 0
    "Seed of folds, draws and fits."
    resamples: int = 2000
    "Number of bootstrap resamples."
    primary: str = ""
    "Primary endpoint in the format of `choose_endpoint`; empty: none, and all differences are corrected for their number."

    def count_repeats(self, *, trains: bool = False, given: bool = False) -> int:
        """Return the number of repeats; by default REPEATS, but 1 if networks are trained or the table gives the split."""
        if self.repeats is not None:
            return self.repeats
        return 1 if trains or given else REPEATS


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One division of the items into training, validation and test set, as sorted indices of items."""

    repeat: int
    fold: int
    train: Indices
    test: Indices
    val: Indices = field(default_factory=_no_items)
    "Only set if the table gives the split; if empty, a task splits off part of `train`."


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The labelled part of the training patients, as a share or as a number per class; drawn `draws` times."""

    name: str
    share: float | None = None
    per_class: int | None = None
    draws: int = 1


def plan_splits(
    patients: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    given: ArrayLike | None = None,
    classes: Sequence[str] = (),
) -> list[Split]:
    """Plan stratified folds by patient, `repeats` times, or use a given split.

    Classes are assigned from the rarest to the most frequent, each patient to the fold with the fewest patients of that class
    (iterative stratification, Sechidis et al., ECML 2011), so that every fold has every class if possible.

    Args:
        patients: Patient of each item.
        labels: Label of each item to stratify by (for survival, the event); None for no stratification.
        folds: Number of folds.
        repeats: Number of repeats, each with different folds.
        seed: Seed of the folds.
        given: Part of each item (train, val or test); replaces the folds.
        classes: Names of the labels, for messages.

    Raises:
        TaskError: A class has fewer patients than there are folds, or the given split lacks a part or a class.
    """
    patients = np.asarray(patients, dtype=str)
    labels = np.zeros(len(patients), dtype=np.int64) if labels is None else np.asarray(labels)
    if repeats < 1:
        raise TaskError(f"{repeats} repeats were requested", do="Use 1 or more")
    if given is not None:
        return [_take_given_split(np.asarray(given, dtype=str), labels, repeat, classes) for repeat in range(repeats)]
    _refuse_rare_classes(patients, labels, folds, classes)
    splits = []
    for repeat in range(repeats):
        order = {patient: address(seed, "folds", repeat, patient) for patient in patients.tolist()}
        fold_of = _assign_folds(patients, labels, folds, order)
        tested = np.array([fold_of[patient] for patient in patients])
        splits += [
            Split(repeat=repeat, fold=fold, train=np.flatnonzero(tested != fold), test=np.flatnonzero(tested == fold))
            for fold in range(folds)
        ]
    return splits


def draw_subset(
    split: Split,
    labels: ArrayLike,
    patients: ArrayLike,
    *,
    share: float | None = None,
    per_class: int | None = None,
    seed: int = 0,
    draw: int = 0,
    classes: Sequence[str] = (),
) -> Indices:
    """Draw a few-shot subset of `split.train`: a `share` of each class's patients, or `per_class` patients of each class.

    Patients are taken with all their items, in one random order per (repeat, fold, draw), so that larger subsets contain smaller
    ones. A patient with items of two classes counts for both. Every class has at least one patient.

    Raises:
        TaskError: The share or count is invalid, or a class has fewer training patients than requested.
    """
    if (share is None) == (per_class is None):
        raise TaskError("a subset is a share or a count of patients", do="Give either share or per_class")
    if share is not None and not 0 < share <= 1:
        raise TaskError(f"a share of {share:g} was requested", do="Give more than 0, at most 1")
    if per_class is not None and per_class < 1:
        raise TaskError(f"{per_class} patients per class were requested", do="Use 1 or more")
    labels, patients = np.asarray(labels), np.asarray(patients, dtype=str)
    train_labels, train_patients = labels[split.train], patients[split.train]

    def order_key(patient: str) -> int:
        return address(seed, "subset", split.repeat, split.fold, draw, patient)

    chosen: set[str] = set()
    for label in np.unique(train_labels):
        order = sorted(set(train_patients[train_labels == label].tolist()), key=order_key)
        # Without the tolerance, a product such as 1.0000000000000002 would be rounded up to two patients.
        count = per_class if per_class is not None else math.ceil((share or 0) * len(order) - 1e-9)
        if count > len(order):
            members = count_noun(len(order), "training patient")
            raise TaskError(
                f"{_name_class(label, classes)} has {members} in repeat {split.repeat}, fold {split.fold}",
                do=f"{count} per class were requested: use at most {len(order)}",
            )
        chosen.update(order[:count])
    return split.train[np.isin(train_patients, list(chosen))]


def list_subsets(
    shares: Sequence[float], per_class: Sequence[int], draws: int, largest_count: int
) -> tuple[list[Subset], list[str]]:
    """List the requested subsets, counts before shares and smallest first, with notes on skipped counts above `largest_count`.

    Raises:
        TaskError: A share or count is invalid, or no subset is left.
    """
    counts = sorted(set(per_class))
    for share in shares:
        if not 0 < share <= 1:
            raise TaskError(f"a share of {share * 100:g} % was requested", do="Give more than 0, at most 100")
    if counts and counts[0] < 1:
        raise TaskError(f"{counts[0]} patients per class were requested", do="Use 1 or more")
    possible = [count for count in counts if count <= largest_count]
    subsets = [Subset(name=f"k={count}", per_class=count, draws=draws) for count in possible]
    # With all labels there is only one possible draw.
    subsets += [Subset(name=f"{share * 100:g}%", share=share, draws=1 if share == 1 else draws) for share in sorted(set(shares))]
    notes = [
        f"{count_noun(count, 'patient per class is', 'patients per class are')} skipped: in some fold a class has "
        f"{count_noun(largest_count, 'training patient')}"
        for count in counts
        if count not in possible
    ]
    if not subsets:
        raise TaskError("; ".join(notes) or "no share of labels was requested", do="Give --shares, or a smaller --per-class")
    return subsets, notes


def find_largest_count(splits: Iterable[Split], labels: ArrayLike, patients: ArrayLike) -> int:
    """Find the largest `per_class` with which `draw_subset` succeeds for all splits."""
    labels, patients = np.asarray(labels), np.asarray(patients, dtype=str)
    return min(
        len(set(patients[split.train][labels[split.train] == label]))
        for split in splits
        for label in np.unique(labels[split.train])
    )


def name_overlap(names: Sequence[str], hashes: Sequence[str], seen: Collection[str]) -> str | None:
    """Return a warning that names the test scans whose content hash is among those seen in pretraining; None if there are none."""
    seen = set(seen)
    overlap = sorted({name for name, content in zip(names, hashes, strict=True) if content in seen})
    if not overlap:
        return None
    scans = count_noun(len(overlap), "test scan was", "test scans were")
    return f"{scans} seen in pretraining (unlabelled), so results may be optimistic: {', '.join(overlap)}"


def write_splits(path: str | Path, splits: Sequence[Split], names: Sequence[str], patients: ArrayLike) -> None:
    """Write splits.csv: one row per item and split, with the item's part (train, val, test)."""
    patients = np.asarray(patients, dtype=str)
    rows = [
        (split.repeat, split.fold, names[i], patients[i], part)
        for split in splits
        for part in ("train", "val", "test")
        for i in getattr(split, part)
    ]
    write_csv(path, ["repeat", "fold", "item", "patient", "part"], rows)


def read_splits(path: str | Path, names: Sequence[str]) -> list[Split]:
    """Read splits.csv as indices into `names`.

    Raises:
        TaskError: The file's items are not those of `names`.
    """
    frame = restore_frame(pd.read_csv(path, dtype={"item": str, "patient": str, "part": str}, keep_default_na=False))
    index_of = {name: i for i, name in enumerate(names)}
    if set(frame["item"]) != set(names):
        raise TaskError(
            "the splits were made for other items than those of the table", where=path, do="Choose another --out, or the same table"
        )
    splits = []
    for repeat, fold in sorted(set(zip(frame["repeat"].tolist(), frame["fold"].tolist(), strict=True))):
        rows = frame[(frame["repeat"] == repeat) & (frame["fold"] == fold)]
        parts = {
            part: np.array(sorted(index_of[name] for name in rows["item"][rows["part"] == part]), dtype=np.int64)
            for part in ("train", "val", "test")
        }
        splits.append(Split(repeat=repeat, fold=fold, **parts))
    return splits


def _assign_folds(patients: NDArray, labels: NDArray, folds: int, order: dict[str, int]) -> dict[str, int]:
    held: dict[str, dict[object, int]] = {patient: {} for patient in sorted(order, key=lambda p: order[p])}
    for patient, label in zip(patients.tolist(), labels.tolist(), strict=True):
        held[patient][label] = held[patient].get(label, 0) + 1
    fold_of: dict[str, int] = {}
    filled = [dict.fromkeys(sorted(set(labels.tolist())), 0) for _ in range(folds)]
    items = [0] * folds
    while len(fold_of) < len(held):
        open_patients = [patient for patient in held if patient not in fold_of]
        left = {label: [p for p in open_patients if label in held[p]] for label in filled[0]}
        rarest = min((label for label in left if left[label]), key=lambda label: len(left[label]))
        # Patients with many items first, because those with a single item can balance them afterwards.
        for patient in sorted(left[rarest], key=lambda p: -sum(held[p].values())):
            fold = min(range(folds), key=lambda f: (filled[f][rarest], items[f]))
            fold_of[patient] = fold
            items[fold] += sum(held[patient].values())
            for label in held[patient]:
                filled[fold][label] += 1
    return fold_of


def _take_given_split(given: NDArray, labels: NDArray, repeat: int, classes: Sequence[str]) -> Split:
    train, val, test = (np.flatnonzero(given == part) for part in ("train", "val", "test"))
    for part, indices in (("train", train), ("test", test)):
        if not len(indices):
            raise TaskError(f"no item of the given split is '{part}'", do=f"Mark some as {part}, or omit the split column")
    unknown = sorted(set(labels[test].tolist()) - set(labels[train].tolist()))
    if unknown:
        raise TaskError(
            f"{_name_class(unknown[0], classes)} is in the test set but not in the training set",
            do="Mark some of its items as train",
        )
    return Split(repeat=repeat, fold=0, train=train, val=val, test=test)


def _refuse_rare_classes(patients: NDArray, labels: NDArray, folds: int, classes: Sequence[str]) -> None:
    if folds < 2:
        raise TaskError(f"{count_noun(folds, 'fold')} cannot be tested", do="Use 2 folds or more")
    counts = {label: len(set(patients[labels == label].tolist())) for label in np.unique(labels).tolist()}
    if not counts:
        raise TaskError("there are no items to split", do="Give a table with rows")
    rarest = min(counts, key=lambda label: counts[label])
    count = counts[rarest]
    if count < folds:
        who = _name_class(rarest, classes) if len(counts) > 1 else "the table"
        do = f"Use --folds {count}" if count >= 2 else "Add patients, or remove this class"
        raise TaskError(f"{who} has {count_noun(count, 'patient')}, fewer than {folds} folds", do=do)


def _name_class(label: Any, classes: Sequence[str]) -> str:
    name = classes[int(label)] if classes and isinstance(label, int | np.integer) else label
    return f"class '{name}'"
