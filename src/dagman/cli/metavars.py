"""Type names and paragraphs of the help: PATH, TEXT or NUMBER rather than `<list[Path]>`."""

from __future__ import annotations

import re
from typing import Any

_NAMES = {"path": "PATH", "str": "TEXT", "int": "INTEGER", "float": "NUMBER", "bool": ""}


def name_values(command: Any) -> Any:
    """Give a command, and its subcommands, help with plain type names and unbroken paragraphs; returns the command.

    Recent versions of Typer show Python's type names, as they bring their own click; older ones need no change.
    """
    if command.help:
        # The source's line breaks would otherwise show, at whatever width the terminal has.
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in command.help.split("\n\n"))
    listed = command.get_params
    command.get_params = lambda ctx: [name_value(param) for param in listed(ctx)]
    for inner in getattr(command, "commands", {}).values():
        name_values(inner)
    return command


def name_value(param: Any) -> Any:
    """Make a parameter show plain type names in its help; returns it."""
    if not hasattr(param, "display_type_rich") or "display_type_rich" in vars(param):
        return param
    if param.param_type_name == "argument":
        several = "..." if param.nargs != 1 else ""
        param.metavar = param.metavar or f"{param.name.upper()}{several}"
        name = param.metavar if param.required else f"[{param.metavar}]"
        param._usage_display_name = lambda: name
    show = param.display_type_rich
    param.display_type_rich = lambda ctx: show_type(show(ctx), argument=param.param_type_name == "argument")
    return param


def show_type(text: str | None, *, argument: bool = False) -> str | None:
    """The name of a type as the help shows it.

    >>> show_type("<list[Path]>", argument=True), show_type("<list[str]>"), show_type("<float range>"), show_type("<auto|ct|mr>")
    ('PATH...', 'TEXT', 'NUMBER', 'auto|ct|mr')
    """
    if text is None or not text.startswith("<"):
        return text
    inside = text.rstrip(".").strip("<>").removesuffix(" range")
    item = re.fullmatch(r"list\[(\w+)\]", inside)
    name = item[1].lower() if item else inside
    shown = " ".join(_NAMES.get(part, part) for part in name.split()) if "|" not in name else name
    return f"{shown}..." if item and argument and shown else shown
