"""`command.json`: how a folder came to be, so that a number can be traced to its command, settings and inputs."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

from dagman.records.files import write_json

_LIBRARIES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "blosc2", "scikit-learn", "monai", "scikit-survival")


def describe_environment() -> dict[str, Any]:
    """Versions of Python, the system and the libraries that numbers depend on; nothing that names a person or a host."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}", "libraries": versions}


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

    name: another one, where several outputs share a folder.
    """
    from dagman import __version__

    write_json(
        Path(folder) / name,
        {
            "format": 1,
            "dagman": __version__,
            "command": command,
            "arguments": sys.argv[1:],
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "settings": settings or {},
            "inputs": inputs or {},
            "outcome": outcome or {},
            "environment": describe_environment(),
        },
    )
