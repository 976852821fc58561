"""`dagman replay`: recomputes a step of a run whose loss was not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: dagman replay run 41")
def replay_command(
    run: Annotated[Path, typer.Argument(help="A run, as written by dagman pretrain.")],
    step: Annotated[int, typer.Argument(help="The step, as given in the run's warning.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Recompute a single training step whose loss was not finite, to find the cause.

    A run saves the weights and views of such a step in RUN/broken. The step is recomputed on the CPU in float32, to find where
    non-finite values first occur, and in which scans. The run is not changed.
    """
    import json

    from rich.console import Console

    from dagman.training.recovery.replay import replay_step

    found = replay_step(run, step)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    verdict = "is finite when recomputed on the CPU in float32" if found.is_finite else "is again not finite"
    console.print(f"Step {found.step} {verdict}.")
    for name, value in found.losses.items():
        console.print(f"  {name}: {value:.6g} (in the run: {found.recorded.get(name, 'none')})")
    for title, names in (
        ("weights before the step that are not finite", found.weights),
        ("modules of the student whose output is not finite, in the order of the forward pass", found.modules),
        ("weights whose gradient is not finite", found.gradients),
    ):
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        console.print(f"  {title}: {shown or 'none'}")
    for (u, v), (low, high) in zip(found.crops, found.ranges, strict=True):
        console.print(f"  scan {u['scan']}, voxels from {u['start']} and {v['start']}: stored values {low} to {high}")
