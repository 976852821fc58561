"""Load the scripts and style sheets that are stored next to the page templates."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files


@cache
def read_asset(name: str) -> str:
    """Read a text file from `templates/`; a name ending in `.gz` is decompressed."""
    held = (files("dagman.reports") / "templates" / name).read_bytes()
    return (gzip.decompress(held) if name.endswith(".gz") else held).decode("utf-8")
