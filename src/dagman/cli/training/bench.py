"""`dagman bench`: what this machine does with a size and a method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: dagman bench store --size small")
def bench_command(
    store: Annotated[
        Path | None, typer.Argument(help="A store. Default: a synthetic store of two patients.", show_default=False)
    ] = None,
    size: Annotated[str | None, typer.Option(help="Model size: tiny, small or paper. Default: tiny.")] = None,
    method: Annotated[str | None, typer.Option(help="Pretraining method: dagman, smit, ibot, ... Default: dagman.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Setting to change, as key=value (see docs/settings.md). Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the pretraining speed of this machine, and compare it with its peak throughput. Writes nothing.

    Prints views and voxels per second of complete steps, crops per second from the store, memory, the largest micro-batch, and
    the duration of the run in hours. Peak throughput is that of one large matrix product in the precision of the run.
    """
    import json

    from rich.console import Console

    from dagman.training.plan.bench import bench_machine

    console = Console(stderr=as_json)
    console.print("Running a few steps; nothing is written.", style="dim")
    bench = bench_machine(store, size=size, method=method, assignments=assignments or ())
    if as_json:
        typer.echo(json.dumps(bench.to_json()))
        return
    plan = bench.plan
    for line in (
        f"machine   {plan.device}, {bench.precision}, kernels {bench.kernels}",
        f"steps     {_format(bench.views_per_s)} views/s, {_format(bench.voxels_per_s / 1e6)} million voxels/s "
        f"({_format(plan.seconds[0])} s per step of {plan.views} views)",
        f"peak      {bench.ceiling_share:.0%} of {_format(bench.flop_per_s / 1e12)} TFLOP/s, the rate of one large matrix product",
        f"reading   {_format(bench.crops_per_s)} views/s by one process; {plan.waiting:.0%} of each step is spent waiting for data",
        *(f"slow      {sentence}" for sentence in plan.slow if sentence.startswith("reading")),
        f"memory    {plan.memory_gib:.2f} GiB at the peak; at most {bench.largest_micro_batch} views at once",
        f"time      {_format(plan.hours[0])} hours for {plan.steps} steps, at the present load of the machine",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _format(value: float) -> str:
    """Three digits, and all digits before the point: 0.223, 72.1, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
