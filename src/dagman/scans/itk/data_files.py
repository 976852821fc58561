"""Which files hold the voxels that a header of its own describes: .mhd and .nhdr, with one data file or a list of them."""

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
    """The header and the data files that it names and that are there, so that a change of any of them is seen.

    A header that cannot be judged, or names its data by a pattern, stands alone: reading explains why it is refused.
    """
    if path.suffix.lower() not in _DETACHED:
        return (path,)
    try:
        name = read_header(path).data_file
        names = _list_names(path) if name.upper().startswith("LIST") else [name]
    except (ScanError, OSError):
        return (path,)
    # The header was read byte by byte; a name is in the encoding of the system.
    own = [os.fsdecode(name.encode("latin-1")) for name in names if name.upper() != "LOCAL" and "\0" not in name]
    places = [path.parent / name for name in own]
    return tuple(dict.fromkeys((path, *(place for place in places if os.path.isfile(place)))))


def _list_names(path: Path) -> list[str]:
    with open(path, "rb") as file:
        text = file.read(_MOST_BYTES)
    match = _LIST.search(text)
    lines = text[match.end() :].splitlines() if match else []
    return [line.strip().decode("latin-1") for line in lines if line.strip()]
