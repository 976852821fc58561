"""What `dagman pretrain --plan` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

_SOON = 2e14
"""Operations of a run of about an hour on one core; of a shorter one the first steps tell soon enough."""

if TYPE_CHECKING:
    from rich.console import Console

    from dagman.training.plan.rehearsal import Plan


def print_plan(console: Console, source: Sequence[Path], as_json: bool, **choices: Any) -> None:
    """Measure a few steps and print what the run will cost, as lines or as JSON."""
    from dagman.training.plan.rehearsal import plan_pretraining, prepare_rehearsal

    console.print("Running a few steps; nothing is written.", style="dim")
    plan = plan_pretraining(prepare_rehearsal(source, **choices))
    if as_json:
        typer.echo(json.dumps(plan.to_json()))
        return
    for line in describe_plan(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def forecast_hours(out: Path) -> str:
    """A line on how long the run in `out`, which begins, will take on a CPU; empty where that is soon seen by itself.

    From the operations of its size, at the pace of a few steps of `tiny`.
    """
    import torch

    from dagman.devices import choose_device
    from dagman.study.cost import count_operations, measure_pace
    from dagman.training.run import Run

    settings = Run(out).settings
    if choose_device(settings.train.device).value != "cpu":
        # Its first steps come within a minute, and a small network does not fill it.
        return ""
    with torch.random.fork_rng(devices=[]):
        try:
            operations = settings.train.steps * settings.train.batch * count_operations(settings)
        except RuntimeError:
            # A network of one's own that reads values in its forward pass cannot be counted without them.
            return ""
        if operations < _SOON:
            return ""
        hours = operations / measure_pace("cpu") / 3600
    steps = f"{settings.train.steps:,} steps"
    return (
        f"about {_show_hours(hours)} for {steps}, from the operations of this size at the pace of tiny measured just now; a closer "
        "figure follows after some steps, or from --plan"
    )


def describe_plan(plan: Plan) -> list[str]:
    """The plan in lines."""
    from dagman.cli.progress import describe_bytes
    from dagman.records.counts import count_noun

    mean, low, high = plan.seconds
    energy = ", ".join(f"{value:.3g} kWh ({name})" for name, value in plan.energy_kwh.items())
    speeds = ", ".join(
        f"{size}: {'does not fit' if speed is None else f'{speed:.3g} views/s'}" for size, speed in plan.micro_batches.items()
    )
    chosen = next(iter(plan.micro_batches))
    best = plan.best_micro_batch
    loaders = count_noun(plan.loaders, "loader process", "loader processes") if plan.loaders else "no loader processes"
    suggestion = f"keep {chosen}" if best == chosen else f"set train.micro_batch={best}"
    return [
        f"run       {plan.steps} steps of {plan.views} views from {plan.scans} scans on {plan.device}",
        *(line.replace("stores: ", "stores    ", 1) for line in plan.stores),
        f"step      {mean:.3g} s ({low:.3g} to {high:.3g}, 95 %, from {plan.measured_steps} steps), {plan.views / mean:.3g} "
        f"views/s; {plan.waiting:.0%} waiting for data",
        f"time      {_show_hours(plan.hours[0])} ({_show_hours(plan.hours[1])} to {_show_hours(plan.hours[2])}) at the present "
        f"load of the machine; an evaluation takes {plan.evaluation_seconds:.2g} s of it",
        f"reading   {plan.reading:.3g} views/s by one process; {loaders}",
        f"memory    {plan.memory_gib:.2f} GiB at the peak",
        f"disk      {describe_bytes(plan.disk_bytes)}; a checkpoint {describe_bytes(plan.checkpoint_bytes)}",
        f"energy    {energy or 'not counted by this hardware, or not readable'}",
        f"views at once   {speeds}: {suggestion}",
        *(f"slow      {sentence}" for sentence in plan.slow or ("nothing stands out.",)),
    ]


def _show_hours(hours: float) -> str:
    if hours >= 100:
        return f"{hours:,.0f} h ({hours / 24:,.0f} days)"
    return f"{hours * 3600:.0f} s" if hours < 1 / 60 else f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"
