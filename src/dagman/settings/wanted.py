"""Describe the expected value of a setting, from pydantic's error, in plain words such as "a whole number" or "1 or more"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a string", "finite": "a finite number"}
"""Descriptions by the first word of the error's type."""
_BOUNDS = {
    "greater_than_equal": "{:g} or more",
    "greater_than": "above {:g}",
    "less_than_equal": "{:g} or less",
    "less_than": "below {:g}",
}


def state_wanted(part: Mapping[str, Any]) -> str:
    """Describe the value that was expected; `part` is one of `ValidationError.errors()`.

    >>> state_wanted({"type": "int_parsing", "msg": "Input should be a valid integer, unable to parse string as an integer"})
    'a whole number'
    """
    kind: str = part["type"]
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(next(iter(part["ctx"].values())))
    text: str = part["msg"]
    return _KINDS.get(kind.partition("_")[0], text.removeprefix("Input should be "))
