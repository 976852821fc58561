"""How a folder of results came to be, as a page shows it: settings, inputs, software."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagman.evaluation.results import Results
from dagman.reports.page import Block, DataTable


def tabulate_settings(results: Results) -> list[Block]:
    """Settings, inputs and software of a folder of results, a row each."""
    command = results.command
    # What was left empty has a dash: a blank cell looks like a fault of the page.
    rows = [
        [key, None if value in ("", [], ()) else value]
        for part in ("settings", "inputs")
        for key, value in flatten_values(command[part]).items()
    ]
    rows.append(["software", name_software(command)])
    return [DataTable(["what", "value"], rows, f"Written {command['written']}; see `command.json` for all details.")]


def name_software(command: Mapping[str, Any]) -> str:
    """Versions of dagman, Python and the libraries that numbers depend on, as one line."""
    environment = command.get("environment", {})
    versions = {"Python": environment.get("python"), **environment.get("libraries", {})}
    return ", ".join(f"{name} {version}" for name, version in {"dagman": command["dagman"], **versions}.items() if version)


def flatten_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten_values(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
