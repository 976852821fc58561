"""Append-only rows of JSON, one a line; a line torn by a crash is dropped when read and cut off when appended to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dagman.records.files import write_text


def append_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows in one write and flush them."""
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
    """All whole rows from byte `start` on; an absent file has none, and a line that is not a JSON object is left out."""
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
    """Rewrite the journal whole with the rows for which `keep` is true."""
    rows = [row for row in read_rows(path) if keep(row)]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
