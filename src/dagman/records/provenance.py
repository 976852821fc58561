"""Writes `command.json`, which records how a folder was made: its command, settings, inputs and software versions."""

from __future__ import annotations

import datetime
import glob
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

from dagman.records.files import write_json
from dagman.records.key import find_key

_LIBRARIES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "blosc2", "scikit-learn", "monai", "scikit-survival")

# Tables and settings, and files that mark a folder written by dagman; paths of these may keep their last part.
_HARMLESS_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".xlsx", ".toml", ".txt", ".json", ".key", ".xml")
_DAGMAN_FILES = (
    "store.json",
    "settings.toml",
    "config.json",
    "metrics.json",
    "command.json",
    "segmentation.json",
    "classifier.json",
    "dense.json",
)


def describe_environment() -> dict[str, Any]:
    """Return the versions of Python, the system and the libraries that affect results; it identifies no person or host."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}", "libraries": versions}


def hide_path(text: str) -> str:
    """Return a command-line argument in a form that may be stored.

    A path of a table, settings file or folder written by dagman is reduced to its last part. A path of scans becomes a
    pseudonym, since scans and their folders are often named after patients; it is the same wherever the same key is used.
    """
    option, sign, value = text.partition("=") if text.startswith("--") else ("", "", text)
    path = Path(value)
    if not value or (text.startswith("-") and not sign) or not _is_path(value):
        return text
    if path.suffix.lower() in _HARMLESS_SUFFIXES or any((path / name).is_file() for name in _DAGMAN_FILES) or not path.name:
        return f"{option}{sign}{path.name or value}"
    key = find_key()
    return f"{option}{sign}scans" if key is None else f"{option}{sign}scans-{key.name(str(path.absolute()))}"


def _is_path(text: str) -> bool:
    try:
        return "/" in text or "\\" in text or glob.has_magic(text) or "#" in text or Path(text).exists()
    except (OSError, ValueError):
        return False


def write_command(
    folder: str | Path,
    command: str,
    *,
    settings: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
    outcome: dict[str, Any] | None = None,
    name: str = "command.json",
) -> None:
    """Write `folder/command.json`: version, command line, settings, fingerprints of the inputs, environment.

    Args:
        folder: the output folder of the command.
        command: name of the command or function.
        settings: settings that were in force.
        inputs: fingerprints of the inputs.
        outcome: what the command reports about its result.
        name: file name; a different one is needed if several outputs share a folder.
    """
    from dagman import __version__

    write_json(
        Path(folder) / name,
        {
            "format": 1,
            "dagman": __version__,
            "command": command,
            "arguments": [hide_path(argument) for argument in sys.argv[1:]],
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "settings": settings or {},
            "inputs": inputs or {},
            "outcome": outcome or {},
            "environment": describe_environment(),
        },
    )
