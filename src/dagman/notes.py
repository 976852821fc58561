"""What a reader has to know beside results: a warning bears on whether the numbers may be believed, information does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """A sentence, and what kind it is of: pages lead with warnings, and list all notes further down."""

    kind: Literal["warning", "info"]
    text: str


def warn(text: str) -> Note:
    """A note that the reader has to consider before believing the numbers, such as on items that were left out."""
    return Note("warning", text)


def inform(text: str) -> Note:
    """A note on what was chosen, or how a number is to be read."""
    return Note("info", text)
