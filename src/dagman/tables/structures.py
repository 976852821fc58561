"""What label maps hold: named structures and their values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What is segmented: its name, and its values in a label map; several count as one, and the first is written."""

    name: str
    values: tuple[int, ...]
