"""The provenance of a folder of results as blocks of a page: settings, inputs, software."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagman.evaluation.results import Results
from dagman.reports.page import Block, DataTable


def tabulate_settings(results: Results) -> list[Block]:
    """Tabulate the settings, inputs and software of a folder of results."""
    command = results.command
    # None is shown as a dash; an empty cell would pass for a rendering error.
    rows = [
        [key, None if value in ("", [], ()) else value]
        for part in ("settings", "inputs")
        for key, value in flatten_values(command[part]).items()
    ]
    rows.append(["software", name_software(command)])
    return [DataTable(["what", "value"], rows, f"Written {command['written']}; see `command.json` for all details.")]


def name_software(command: Mapping[str, Any]) -> str:
    """List the versions of dagman, Python and the libraries that affect results, in one line."""
    environment = command.get("environment", {})
    versions = {"Python": environment.get("python"), **environment.get("libraries", {})}
    return ", ".join(f"{name} {version}" for name, version in {"dagman": command["dagman"], **versions}.items() if version)


def flatten_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten_values(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
