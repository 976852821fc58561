"""Who is trained on and who is tested on: splits by patient, few-shot draws, and test scans that pretraining saw.

Every draw is a pure function of (seed, repeat, fold, draw, patient), so the order of a table's rows changes nothing.
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
"""Where a repeat costs seconds: at 43 items one repeat finds an AUC of 0.69 in 25 % of data sets, five in 37 % (decision 0022)."""


def _no_items() -> Indices:
    return np.array([], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a task divides the patients, draws few labels, and judges what was predicted; every task's settings begin with it."""

    folds: int = 5
    "Folds by patient."
    repeats: int | None = None
    "Repeats with other folds; None: as `count_repeats` says."
    shares: tuple[float, ...] = (1.0,)
    "Shares of the training patients that are labelled."
    per_class: tuple[int, ...] = ()
    "Numbers of labelled patients (a class, where there are classes)."
    draws: int = 1
    "Few-shot draws in each repeat and fold."
    seed: int = 0
    "Seed of folds, draws and fits."
    resamples: int = 2000
    "Resamples of the bootstrap."
    primary: str = ""
    "The primary endpoint, as in `choose_endpoint`; empty: none, and all differences are corrected for their number."

    def count_repeats(self, *, trains: bool = False, given: bool = False) -> int:
        """The repeats asked for; else REPEATS, or 1 where networks are trained, or where the table gives the one split there is."""
        if self.repeats is not None:
            return self.repeats
        return 1 if trains or given else REPEATS


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One division of the items: sorted indices into the items' order."""

    repeat: int
    fold: int
    train: Indices
    test: Indices
    val: Indices = field(default_factory=_no_items)
    "Given by the table alone; without it a task takes an inner split of `train`."


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A part of the training patients that is labelled: a share, or a count a class; drawn `draws` times."""

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
    """Stratified folds by patient, `repeats` times; or the `given` split (train, val, test of each item).

    patients, labels: one an item; labels None: not stratified (for survival give the event). classes: names of the
    labels for messages. Folds are filled from the rarest class on, each patient going to the fold that has fewest
    patients of that class (iterative stratification, Sechidis et al., ECML 2011), so that every fold has every class
    if that is possible.

    Raises TaskError if a class has fewer patients than there are folds, or if the given split lacks a part or a class.
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
    """A few-shot part of `split.train`: a `share` of each class's patients, or `per_class` patients of each class.

    Patients are taken in one random order a (repeat, fold, draw), with all their items, so that a larger subset
    contains a smaller one. A patient with items of two classes counts for both. At least one patient a class.

    Raises TaskError if a class has fewer training patients than asked for.
    """
    if (share is None) == (per_class is None):
        raise TaskError("a subset is a share or a count of patients", do="Give either share or per_class")
    if share is not None and not 0 < share <= 1:
        raise TaskError(f"a share of {share:g} was requested", do="Give more than 0, at most 1")
    if per_class is not None and per_class < 1:
        raise TaskError(f"{per_class} patients per class were requested", do="Use 1 or more")
    labels, patients = np.asarray(labels), np.asarray(patients, dtype=str)
    train_labels, train_patients = labels[split.train], patients[split.train]

    def place(patient: str) -> int:
        return address(seed, "subset", split.repeat, split.fold, draw, patient)

    chosen: set[str] = set()
    for label in np.unique(train_labels):
        order = sorted(set(train_patients[train_labels == label].tolist()), key=place)
        # The tolerance keeps 0.1 of 10 patients at one: floating point makes 1.0000000000000002 of it at times.
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
    """The subsets asked for, counts before shares, smallest first; and a note on counts beyond `largest_count`, left out.

    Raises TaskError for a share or count that cannot be, or when nothing is left.
    """
    counts = sorted(set(per_class))
    for share in shares:
        if not 0 < share <= 1:
            raise TaskError(f"a share of {share * 100:g} % was requested", do="Give more than 0, at most 100")
    if counts and counts[0] < 1:
        raise TaskError(f"{counts[0]} patients per class were requested", do="Use 1 or more")
    possible = [count for count in counts if count <= largest_count]
    subsets = [Subset(name=f"k={count}", per_class=count, draws=draws) for count in possible]
    # All labels are one draw.
    subsets += [Subset(name=f"{share * 100:g}%", share=share, draws=1 if share == 1 else draws) for share in sorted(set(shares))]
    notes = [
        f"{count_noun(count, 'patient per class is', 'patients per class are')} left out: in some fold a class has "
        f"{count_noun(largest_count, 'training patient')}"
        for count in counts
        if count not in possible
    ]
    if not subsets:
        raise TaskError("; ".join(notes) or "no share of labels was requested", do="Give --shares, or a smaller --per-class")
    return subsets, notes


def find_largest_count(splits: Iterable[Split], labels: ArrayLike, patients: ArrayLike) -> int:
    """The largest `per_class` that `draw_subset` can give in all these splits."""
    labels, patients = np.asarray(labels), np.asarray(patients, dtype=str)
    return min(
        len(set(patients[split.train][labels[split.train] == label]))
        for split in splits
        for label in np.unique(labels[split.train])
    )


def name_overlap(names: Sequence[str], hashes: Sequence[str], seen: Collection[str]) -> str | None:
    """A warning that names every test scan whose content hash pretraining saw; None if there is none."""
    seen = set(seen)
    overlap = sorted({name for name, content in zip(names, hashes, strict=True) if content in seen})
    if not overlap:
        return None
    scans = count_noun(len(overlap), "test scan was", "test scans were")
    return f"{scans} seen in pretraining (unlabelled), so results may be optimistic: {', '.join(overlap)}"


def write_splits(path: str | Path, splits: Sequence[Split], names: Sequence[str], patients: ArrayLike) -> None:
    """Write splits.csv whole: a row an item and split, with its part (train, val, test)."""
    patients = np.asarray(patients, dtype=str)
    rows = [
        (split.repeat, split.fold, names[i], patients[i], part)
        for split in splits
        for part in ("train", "val", "test")
        for i in getattr(split, part)
    ]
    write_csv(path, ["repeat", "fold", "item", "patient", "part"], rows)


def read_splits(path: str | Path, names: Sequence[str]) -> list[Split]:
    """The splits of a splits.csv as indices into `names`; raises TaskError if the items are others."""
    frame = restore_frame(pd.read_csv(path, dtype={"item": str, "patient": str, "part": str}, keep_default_na=False))
    places = {name: i for i, name in enumerate(names)}
    if set(frame["item"]) != set(names):
        raise TaskError(
            "the splits were made for other items than those of the table", where=path, do="Choose another --out, or the same table"
        )
    splits = []
    for repeat, fold in sorted(set(zip(frame["repeat"].tolist(), frame["fold"].tolist(), strict=True))):
        rows = frame[(frame["repeat"] == repeat) & (frame["fold"] == fold)]
        parts = {
            part: np.array(sorted(places[name] for name in rows["item"][rows["part"] == part]), dtype=np.int64)
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
        # Patients with many items first: few of them can still be balanced by those with one.
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
