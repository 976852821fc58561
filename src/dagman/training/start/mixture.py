"""Several stores as one, each with a weight: `dagman pretrain a:2 b:1` takes two pairs of views from `a` for each one from `b`.

The share of a store is its weight, not its size, so a large cohort does not drown a small one. Within a store all scans take turns,
so a long scan does not drown a short one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman.errors import RunError
from dagman.records.counts import count_noun, list_some
from dagman.records.sources import expand_sources
from dagman.store.manifest import ManifestRow, Store
from dagman.store.upkeep.checks import SharedChecks
from dagman.training.views import Part

LARGEST_ROUND = 1000
"""Maximum number of pairs after which the order of the stores repeats. [ours]"""


def split_weight(text: str | Path) -> tuple[Path, Fraction]:
    """A path and its weight (default 1); a path that exists is never split.

    Raises:
        RunError: The weight is not a number above 0.
    """
    path = Path(text)
    found = re.fullmatch(r"(.+):([^:/\s]+)", str(text))
    if path.exists() or found is None:
        return path, Fraction(1)
    try:
        weight = Fraction(found[2])
    except (ValueError, ZeroDivisionError):
        if not Path(found[1]).exists():
            # A path that is not there, whose name has a colon.
            return path, Fraction(1)
        raise RunError(
            f"the weight {found[2]!r} is not a number", where=text, do="Give a number above 0, as in a:2 b:0.5"
        ) from None
    if weight <= 0:
        raise RunError(f"has a weight of {found[2]}", where=text, do="Remove it, or give it a weight above 0")
    return Path(found[1]), weight


def expand_parts(sources: Sequence[Path]) -> list[Path]:
    """The paths meant (`expand_sources`): patterns and lists are expanded; a pattern's weight is that of each of its stores.

    Raises:
        SettingsError: As `expand_sources`.
        RunError: Some of the paths are stores, and others do not exist: all of these are named.
    """
    found: list[Path] = []
    for source in sources:
        path, weight = split_weight(source)
        expanded = expand_sources([path])
        suffix = str(source)[len(str(path)) :]
        found += expanded if weight == 1 and not suffix else [Path(f"{one}{suffix}") for one in expanded]
    found = list(dict.fromkeys(found))
    # Scans are rejected one by one; of stores, none may be missing.
    absent = [path for path in found if not split_weight(path)[0].exists()] if any(map(is_store, found)) else []
    if absent:
        what = f"{len(absent)} of {len(found)} stores {'does' if len(absent) == 1 else 'do'} not exist: {list_some(absent)}"
        raise RunError(what, do="Correct these paths, or remove them")
    return found


def is_store(path: str | Path) -> bool:
    """Whether a path, with or without a weight, is a store."""
    return (split_weight(path)[0] / "store.json").exists()


class Mixture(Store):
    """Several stores as one; a scan that is in more than one of them is read from the first.

    Raises:
        RunError: A store is given twice, they were prepared differently, or their weights have no small common multiple.
    """

    def __init__(self, parts: Sequence[tuple[Path, Fraction]]) -> None:
        super().__init__(parts[0][0])
        self.stores = [Store(path) for path, _ in parts]
        seen: set[Path] = set()
        for one in self.stores:
            if (place := one.path.resolve()) in seen:
                raise RunError("is given twice", where=one.path, do="Give it once, with one weight")
            seen.add(place)
        for other in self.stores[1:]:
            if other.preparation != self.preparation:
                raise RunError(
                    f"was prepared differently ({other.preparation.spacing:g} mm) "
                    f"than {self.path} ({self.preparation.spacing:g} mm)",
                    where=other.path,
                    do="Prepare both the same way",
                )
        common = math.lcm(*(weight.denominator for _, weight in parts))
        shares = [int(weight * common) for _, weight in parts]
        self.weights = [share // math.gcd(*shares) for share in shares]
        if sum(self.weights) > LARGEST_ROUND:
            raise RunError(
                f"weights {self.weights} need more than {LARGEST_ROUND} pairs per round", do="Use weights in simpler ratios"
            )

    @cached_property
    def _rows_by_id(self) -> dict[str, ManifestRow]:
        rows: dict[str, ManifestRow] = {}
        for store in reversed(self.stores):
            rows |= {row.id: row for row in store.rows}
        return dict(sorted(rows.items()))

    @cached_property
    def _owners(self) -> dict[str, Store]:
        return {row.id: store for store in reversed(self.stores) for row in store.rows}

    def share_checks(self, checks: SharedChecks) -> None:
        """As `Store.share_checks`, for each of the stores; a scan is read from one of them only."""
        for store in self.stores:
            store.share_checks(checks)

    def crop(self, scan_id: str, start: Sequence[int], size: Sequence[int]) -> NDArray[np.int16]:
        """int16 voxels X Y Z of a box of a scan, from the store that holds it."""
        return self._owners[self.row(scan_id).id].crop(scan_id, start, size)

    def __getstate__(self) -> dict[str, Any]:
        # A worker looks the owners up again, and so opens each store once.
        return {key: value for key, value in super().__getstate__().items() if key != "_owners"}


def open_stores(parts: Sequence[tuple[Path, Fraction]]) -> Store:
    """One store, or several with their weights as one; raises StoreError, and RunError as `Mixture`."""
    return Store(parts[0][0]) if len(parts) == 1 else Mixture(parts)


def list_parts(store: Store, usable: Sequence[str]) -> list[Part]:
    """The usable scans of each store with its weight; one part for a single store.

    Raises:
        RunError: A store has no usable scan.
    """
    if not isinstance(store, Mixture):
        return [Part(weight=1, scans=list(usable))]
    parts = []
    for one, weight in zip(store.stores, store.weights, strict=True):
        held = {row.id for row in one.rows}
        scans = [scan for scan in usable if scan in held]
        if not scans:
            raise RunError("holds no scan large enough for a view", where=one.path, do="Remove it, or set a smaller view.side")
        parts.append(Part(weight=weight, scans=scans))
    return parts


def describe_shares(store: Store, parts: Sequence[Part], pairs: int) -> list[str]:
    """A line on the share of each store, and how often its scans are seen in `pairs` pairs; none for a single store."""
    if not isinstance(store, Mixture):
        return []
    total = sum(part.weight for part in parts)
    shares = (
        f"{one.path.name} {part.weight / total:.0%} of the views, {count_noun(len(part.scans), 'scan')}, "
        f"{pairs * part.weight / total / len(part.scans):.1f} pairs per scan"
        for one, part in zip(store.stores, parts, strict=True)
    )
    return [f"stores: {'; '.join(shares)}"]
