"""Generate the reference page of the settings from their docstrings."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dagman.settings.presets import list_presets
from dagman.settings.tree import Settings


def render_reference() -> str:
    """Render `docs/settings.md`: Markdown tables of all keys with their defaults and descriptions."""
    sections = {name: type(field.default) for name, field in Settings.model_fields.items() if isinstance(field.default, BaseModel)}
    plain = {name: field for name, field in Settings.model_fields.items() if name not in sections}
    parts = [
        "# Settings",
        "Settings come from presets, a TOML file (`--config`) and `--set key=value`, in increasing order of priority. Presets "
        "change some of the defaults below. Available presets: "
        f"sizes {_list_names('sizes')}; methods {_list_names('methods')}.",
        "This page is generated from the code by `make docs`. Notes such as *App. A* and *Fig. 6* refer to the DAGMaN paper; "
        "[SMIT], [iBOT], [AttMask] and [SwAV] to the papers they name; [ours] marks a choice of this project.",
        _render_table("", plain),
    ]
    for name, section in sections.items():
        parts += [f"## {name}", str(section.__doc__), _render_table(f"{name}.", section.model_fields)]
    return "\n\n".join(parts) + "\n"


def _list_names(kind: str) -> str:
    return ", ".join(f"`{name}`" for name in list_presets(kind))


def _render_table(prefix: str, fields: Mapping[str, FieldInfo]) -> str:
    rows = [
        f"| `{prefix}{name}` | `{_show(field.default)}` | {' '.join((field.description or '').split())} |"
        for name, field in fields.items()
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
