"""Naming what a user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_name(wrong: str, names: Iterable[str]) -> str | None:
    """The name most like `wrong`, or None when nothing is like it."""
    lowered = {name.lower(): name for name in names}
    found = difflib.get_close_matches(wrong.lower(), lowered, n=1, cutoff=0.4)
    return lowered[found[0]] if found else None


def suggest_name(wrong: str, names: Iterable[str]) -> str:
    """What to do about a misspelt name: the nearest one, or all there are."""
    names = list(names)
    nearest = nearest_name(wrong, names)
    return f"Nearest: {nearest}" if nearest else f"There are: {', '.join(names)}"
