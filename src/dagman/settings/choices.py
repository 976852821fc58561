"""Names that settings may use, as plain data, so that settings can be checked before torch is imported.

The corresponding networks and functions are registered in `dagman.model.backbone` and `dagman.method.masking`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError


@dataclass(frozen=True, kw_only=True)
class MaskingChoice:
    """Describe a kind of masking to the settings, warnings and pages.

    Attributes:
        description: Which units it masks, to complete the sentence "Masked units are ...".
        needs_attention: Whether it ranks units by the teacher's attention.
        gives_hints: Whether it leaves hints visible, so that `hints` and `hint_pool` have an effect.
    """

    description: str
    needs_attention: bool = False
    gives_hints: bool = False


MASKINGS: dict[str, MaskingChoice] = {
    "attention-high": MaskingChoice(description="those the teacher attends to most", needs_attention=True, gives_hints=True),
    "attention-low": MaskingChoice(description="those the teacher attends to least", needs_attention=True),
    "random": MaskingChoice(description="drawn at random"),
    "block": MaskingChoice(description="boxes at random places"),
}
"""All kinds of masking by name; `dagman.training.assembly.register_masking` adds one."""


FIXED_SIZES = frozenset({"resnet3d", "resenc"})
"""Backbones whose sizes are determined by their name, such as resnet3d:18."""
OWN_CLS = frozenset({"vit"})
"""Plain transformers: backbones with their own [CLS] token, and with the same width and number of heads in all blocks."""


def check_masking(name: Any) -> Any:
    """Return the name if it is in `MASKINGS`; raises a pydantic error that lists the allowed names otherwise."""
    return check_name(name, MASKINGS)


def check_name(name: Any, names: Collection[str]) -> Any:
    """Return the name if it is one of `names`; raises a pydantic error that lists them otherwise."""
    if name not in names:
        *most, last = map(repr, names)
        expected = f"{', '.join(most)} or {last}" if most else last
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return name
