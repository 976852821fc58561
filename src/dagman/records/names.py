"""Suggests the name or path that a user probably meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

_MOST_SIBLINGS = 10_000
"""Largest number of siblings of a missing path that are compared with it."""


def nearest_name(wrong: str, names: Iterable[str]) -> str | None:
    """Return the name most similar to `wrong`, ignoring case, or None if none is similar."""
    lowered = {name.lower(): name for name in names}
    matches = difflib.get_close_matches(wrong.lower(), lowered, n=1, cutoff=0.4)
    return lowered[matches[0]] if matches else None


def suggest_path(wrong: str | Path, otherwise: str) -> str:
    """Suggest the most similar sibling of a missing path; return `otherwise` if all differ too much."""
    path = Path(wrong)
    try:
        with os.scandir(path.parent) as entries:
            siblings = [entry.name for entry in islice(entries, _MOST_SIBLINGS) if not entry.name.startswith(".")]
    except OSError:
        return otherwise
    lowered = {name.lower(): name for name in siblings}
    matches = difflib.get_close_matches(path.name.lower(), lowered, n=1, cutoff=0.7)
    return f"Nearest: {path.parent / lowered[matches[0]]}" if matches else otherwise


def suggest_name(wrong: str, names: Iterable[str]) -> str:
    """Suggest the valid name that is most similar to `wrong`; list all valid names if all differ too much."""
    names = list(names)
    nearest = nearest_name(wrong, names)
    return f"Nearest: {nearest}" if nearest else f"Available: {', '.join(names)}"
