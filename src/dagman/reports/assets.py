"""Scripts and styles of pages, from the files beside their templates."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def read_asset(name: str) -> str:
    """The text of a file of `templates/`."""
    return (files("dagman.reports") / "templates" / name).read_text(encoding="utf-8")
