"""The reference page of the settings, made from their own sentences."""

from __future__ import annotations

from pydantic import BaseModel

from dagman.settings.tree import Settings


def render_reference() -> str:
    """`docs/settings.md`: every key, its default and its sentence, as Markdown tables."""
    parts = [
        "# Settings\n\nGiven by a preset, a TOML file (`--config`) or `--set key=value`, the later winning. Made by `make docs` from the code.\n"
    ]
    plain = [(name, field) for name, field in Settings.model_fields.items() if not _is_section(field.annotation)]
    parts.append(_render_table("", plain))
    for name, field in Settings.model_fields.items():
        if _is_section(field.annotation):
            section = field.annotation
            parts.append(f"\n## {name}\n\n{section.__doc__}\n")
            parts.append(_render_table(f"{name}.", list(section.model_fields.items())))
    return "\n".join(parts)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _render_table(prefix: str, fields: list) -> str:
    rows = [f"| `{prefix}{name}` | `{_show(field.default)}` | {field.description} |" for name, field in fields]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
