"""Finds the data files of a detached header (.mhd, .nhdr), which names one file or a list of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dagman.errors import ScanError
from dagman.scans.itk.header import read_header

_MOST_BYTES = 1 << 20
_DETACHED = (".mhd", ".nhdr")
_LIST = re.compile(rb"^[ \t]*(?:ElementDataFile|data ?file)[ \t]*[=:][ \t]*LIST[^\n]*(?:\n|\Z)", re.MULTILINE | re.IGNORECASE)


def list_files(path: Path) -> tuple[Path, ...]:
    """Return the header and its existing data files, so that a change of any of them is noticed.

    Only the header is returned if it cannot be parsed, or names its data by a pattern; it is then rejected when it is read.
    """
    if path.suffix.lower() not in _DETACHED:
        return (path,)
    try:
        name = read_header(path).data_file
        names = _list_names(path) if name.upper().startswith("LIST") else [name]
    except (ScanError, OSError):
        return (path,)
    # The header was decoded byte by byte (latin-1), but file names are in the encoding of the system.
    decoded = [os.fsdecode(name.encode("latin-1")) for name in names if name.upper() != "LOCAL" and "\0" not in name]
    files = [path.parent / name for name in decoded]
    return tuple(dict.fromkeys((path, *(file for file in files if os.path.isfile(file)))))


def _list_names(path: Path) -> list[str]:
    with open(path, "rb") as file:
        text = file.read(_MOST_BYTES)
    match = _LIST.search(text)
    lines = text[match.end() :].splitlines() if match else []
    return [line.strip().decode("latin-1") for line in lines if line.strip()]
