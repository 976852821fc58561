"""Atomic writing: a file or folder is written under a temporary name next to its target, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` and rename it (a file or a folder) to `path` when the block succeeds.

    The content is flushed to disk before the rename, so that a crash leaves either the old file or the new one. If the block
    fails, the temporary file is removed and an existing `path` is left untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays at the end, because writers such as nibabel and pandas choose the format by it.
    temporary = path.parent / f".{uuid.uuid4().hex[:8]}.partial.{path.name}"
    try:
        yield temporary
        if temporary.is_dir():
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            # rename() cannot replace a folder that is not empty, so the old one is moved out of the way first.
            aside = path.parent / f".{uuid.uuid4().hex[:8]}.old.{path.name}"
            if path.exists():
                os.rename(path, aside)
            os.rename(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            _flush(temporary)
            os.replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write an indented JSON file atomically, with its keys in the given order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
