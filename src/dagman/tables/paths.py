"""Interprets paths in tables: relative to the table, quoted, as file:// URLs, below the home folder, or with backslashes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dagman.errors import TableError
from dagman.records.counts import name_rows
from dagman.scans.dicom import source_exists

_DRIVE = re.compile(r"([A-Za-z]:[\\/]|\\\\)")


def tidy_path(text: str, root: Path) -> str:
    """Return the path that a cell stands for, relative to `root` or absolute; a path that exists is returned unchanged."""
    if source_exists(root / text):
        return text
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    if text.lower().startswith("file://"):
        # Decoded here, since urllib, which could open connections, is not imported anywhere but in encoder/hub.py.
        encoded = re.sub(r"^file://(localhost)?", "", text, flags=re.IGNORECASE).encode()
        text = re.sub(rb"%([0-9A-Fa-f]{2})", lambda code: bytes([int(code[1], 16)]), encoded).decode(errors="replace")
    if text.startswith(("~/", "~\\")):
        text = str(Path.home() / text[2:])
    if "\\" in text and not source_exists(root / text) and not _DRIVE.match(text):
        text = text.replace("\\", "/")
    return text


def refuse_drives(texts: Sequence[str | None], where: Path) -> None:
    """Raise TableError for paths on Windows drives and shares, which do not exist on this machine."""
    rows = [row for row, text in enumerate(texts) if text and _DRIVE.match(text) and not source_exists(where.parent / text)]
    if rows:
        first = texts[rows[0]]
        do = "Write paths relative to the table's folder (with either slash), or absolute paths of this machine"
        raise TableError(f"holds paths on a Windows drive or share in {name_rows(rows)}, such as {first}", where=where, do=do)
