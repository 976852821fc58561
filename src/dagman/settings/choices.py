"""What a setting may name, as plain data, so that settings are checked before torch is loaded.

The networks and functions behind the names are registered in `dagman.model.backbone` and `dagman.method.masking`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError


@dataclass(frozen=True, kw_only=True)
class MaskingChoice:
    """What the settings, the warnings and the pages need to know of a masking.

    Attributes:
        description: What it hides, to follow "Masked units are".
        needs_attention: Whether it ranks units by the teacher's attention.
        gives_hints: Whether it gives hints back, so that `hints` and `hint_pool` shape it.
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
"""Every masking by its name; `dagman.training.assembly.register_masking` adds one."""


FIXED_SIZES = frozenset({"resnet3d", "resenc"})
"""Backbones whose sizes follow from their name, such as resnet3d:18."""
OWN_CLS = frozenset({"vit"})
"""Backbones with a [CLS] token of their own, one width and one number of heads throughout: plain transformers."""


def check_masking(name: Any) -> Any:
    """A name in `MASKINGS`; raises pydantic's error for a value that is not one of several."""
    return check_name(name, MASKINGS)


def check_name(name: Any, names: Collection[str]) -> Any:
    """A name among `names`; raises pydantic's error, which lists them, for any other value."""
    if name not in names:
        *most, last = (repr(one) for one in names)
        expected = f"{', '.join(most)} or {last}" if most else last
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return name
