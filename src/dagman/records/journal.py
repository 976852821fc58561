"""Append-only JSON lines. A last line cut short by a crash is ignored when reading and removed by the next append."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dagman.records.files import write_text


def append_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows in a single write and flush them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with open(path, "a+b") as file:
        size = file.seek(0, 2)
        if size:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(text.encode())
        file.flush()


def append_row(path: str | Path, row: dict[str, Any]) -> None:
    """Append one row."""
    append_rows(path, [row])


def read_rows(path: str | Path, *, start: int = 0) -> list[dict[str, Any]]:
    """Read all complete rows from byte `start` on.

    Lines that are not JSON objects are skipped; a missing file has no rows.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    with open(path, "rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", errors="replace")
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def keep_rows(path: str | Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite the journal atomically with only the rows for which `keep` returns true."""
    rows = [row for row in read_rows(path) if keep(row)]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
