"""`dagman info`: describe an encoder, a run, a store, a model, or what `dagman embed` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)

_TITLES = {"bytes": "size on disk", "first_weights": "share of initial weights left"}
"""Names of values that their keys do not explain."""
_EXAMPLE = "Example: dagman info runs/first"


@app.command(epilog=_EXAMPLE)
def describe_folder(
    path: Annotated[
        str, typer.Argument(help="A run, an encoder folder, scratch:SIZE, a store, a task's model, or the output of dagman embed.")
    ],
    weights: Annotated[str, typer.Option(help="Which weights of a run: teacher, student, or auto (teacher).")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as JSON, with exact numbers.")] = False,
) -> None:
    """Describe an encoder, run, store, model or feature file: its origin, intended use, inputs and outputs."""
    from rich.console import Console

    from dagman.export.contents import describe_path

    contents = describe_path(path, weights=weights)
    if as_json:
        typer.echo(json.dumps(contents.to_values()))
        return
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(f"{contents.kind}: {contents.what}")
    for title, values in (("made of", contents.made_of), ("made from", contents.made_from), ("contract", contents.contract)):
        if values:
            console.print(f"\n{title}")
            _print_values(console, values)
    listings = (("may be used for", contents.used_for), ("must not be used for", contents.not_for), ("notes", contents.notes))
    for title, lines in listings:
        if lines:
            console.print(f"\n{title}")
            for line in lines:
                console.print(f"  {line}")


def _print_values(console: Any, values: Mapping[str, Any], depth: int = 1) -> None:
    for key, value in values.items():
        name = "  " * depth + _TITLES.get(key, key.replace("_", " "))
        if isinstance(value, Mapping):
            console.print(name)
            _print_values(console, value, depth + 1)
        else:
            console.print(f"{name}: {_show_value(key, value)}")


def _show_value(key: str, value: Any) -> str:
    """A value as people read it; `--json` has the exact one."""
    from dagman.cli.progress import describe_bytes

    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "bytes":
        return describe_bytes(value)
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_show_value("", one) for one in value)
    return str(value)
