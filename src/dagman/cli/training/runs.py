"""`dagman runs`: the pretraining runs in a folder, and one page with all their curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from dagman.training.monitoring.overview import RunState

app = typer.Typer(add_completion=False)
_COLORS = {"green": "green", "amber": "yellow", "red": "red", None: "dim"}


@app.command(epilog="Example: dagman runs runs --page runs.html")
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder to search recursively for pretraining runs.", metavar="DIR")] = Path(),
    page: Annotated[Path | None, typer.Option(help="Also write an HTML page with the curves of all runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
) -> None:
    """List the pretraining runs in a folder, with the state, step, losses and status (green, amber or red) of each.

    A run is running, finished, waiting (it stopped at a checkpoint or has not started yet), killed (it ended after its last
    checkpoint; repeat its command to resume from there) or damaged (its files cannot be read).
    """
    import json

    from rich.console import Console

    from dagman.training.monitoring.overview import list_runs
    from dagman.training.run import Run

    states = list_runs(folder)
    if as_json:
        typer.echo(json.dumps([one.to_json() for one in states]))
    else:
        _print_states(Console(), folder, states)
    if page is not None:
        from dagman.reports.run.overlay import write_runs_page

        written = write_runs_page([Run(one.path) for one in states], page)
        typer.echo(str(written), err=as_json)


def _print_states(console: Console, folder: Path, states: list[RunState]) -> None:
    from rich.table import Table
    from rich.text import Text

    from dagman.cli.progress import describe_seconds

    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "step", "total", "amip", "time left", "status"):
        table.add_column(name, overflow="fold")
    for one in states:
        losses = one.losses or {}
        left = describe_seconds(one.seconds_left) if one.seconds_left and one.state == "running" else ""
        numbers = [f"{losses[key]:.3f}" if key in losses else "" for key in ("total", "amip")]
        status = Text(one.light or "", style=_COLORS[one.light])
        table.add_row(
            Text(_shorten(one.path, folder)), one.state, f"{one.step} of {one.steps}" if one.steps else "", *numbers, left, status
        )
    console.print(table)
    for one in states:
        if one.light in ("amber", "red") or one.problem:
            others = f" {one.others} more in its report." if one.others else ""
            sentence = one.problem or " ".join(filter(None, (one.text, one.remedy))) + others
            line = Text.assemble((_shorten(one.path, folder), _COLORS[one.light]), f": {sentence}")
            console.print(line, soft_wrap=True, highlight=False)


def _shorten(path: str, folder: Path) -> str:
    relative = str(Path(path).relative_to(folder))
    return relative if relative != "." else path
