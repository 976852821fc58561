"""Naming what a user probably meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

_MOST_BESIDE = 10_000
"""Names beside a missing path among which the nearest is looked for."""


def nearest_name(wrong: str, names: Iterable[str]) -> str | None:
    """The name most like `wrong`, or None when nothing is like it."""
    lowered = {name.lower(): name for name in names}
    found = difflib.get_close_matches(wrong.lower(), lowered, n=1, cutoff=0.4)
    return lowered[found[0]] if found else None


def suggest_path(wrong: str | Path, otherwise: str) -> str:
    """What to do about a path that does not exist: the most similar one beside it, or `otherwise`."""
    path = Path(wrong)
    try:
        with os.scandir(path.parent) as entries:
            beside = [entry.name for entry in islice(entries, _MOST_BESIDE) if not entry.name.startswith(".")]
    except OSError:
        return otherwise
    lowered = {name.lower(): name for name in beside}
    found = difflib.get_close_matches(path.name.lower(), lowered, n=1, cutoff=0.7)
    return f"Nearest: {path.parent / lowered[found[0]]}" if found else otherwise


def suggest_name(wrong: str, names: Iterable[str]) -> str:
    """What to do about a misspelt name: the nearest one, or all there are."""
    names = list(names)
    nearest = nearest_name(wrong, names)
    return f"Nearest: {nearest}" if nearest else f"Available: {', '.join(names)}"
