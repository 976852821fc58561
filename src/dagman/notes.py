"""Notes that accompany results: warnings, which affect whether the numbers can be trusted, and information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """A sentence and its kind. Pages show warnings at the top and list all notes further down."""

    kind: Literal["warning", "info"]
    text: str


def warn(text: str) -> Note:
    """Create a warning, which readers should consider before trusting the numbers, such as one about excluded items."""
    return Note("warning", text)


def inform(text: str) -> Note:
    """Create an informational note, on a choice that was made or on how to interpret a number."""
    return Note("info", text)
