"""Scripts and styles of pages, from the files beside their templates."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files


@cache
def read_asset(name: str) -> str:
    """The text of a file of `templates/`, unpacked if it is gzipped."""
    held = (files("dagman.reports") / "templates" / name).read_bytes()
    return (gzip.decompress(held) if name.endswith(".gz") else held).decode("utf-8")
