"""`dagman info`: what an encoder, a run, a store, a model, or what `embed` wrote is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman info runs/first"


@app.command(epilog=_EXAMPLE)
def describe_folder(
    path: Annotated[
        str, typer.Argument(help="A run, an encoder folder, scratch:SIZE, a store, a task's model, or the output of dagman embed.")
    ],
    weights: Annotated[str, typer.Option(help="Which weights of a run: teacher, student, or auto (teacher).")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
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
        name = "  " * depth + key.replace("_", " ")
        if isinstance(value, Mapping):
            console.print(name)
            _print_values(console, value, depth + 1)
        else:
            console.print(f"{name}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}")
