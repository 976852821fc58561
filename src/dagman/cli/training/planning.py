"""The output of `dagman pretrain --plan`, and the forecast at the start of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dagman.records.counts import count_noun

_SOON = 2e14
"""Operations of a run of about an hour on one core; for a shorter run the first steps give the time soon enough."""

if TYPE_CHECKING:
    from rich.console import Console

    from dagman.training.plan.rehearsal import Plan


def print_plan(console: Console, source: Sequence[Path], as_json: bool, **choices: Any) -> None:
    """Measure a few steps and print the estimated cost of the run, as lines or as JSON."""
    from dagman.training.plan.rehearsal import plan_pretraining, prepare_rehearsal

    rehearsal = prepare_rehearsal(source, **choices)
    console.print("Running a few steps; nothing is written.", style="dim")
    plan = plan_pretraining(rehearsal)
    if as_json:
        typer.echo(json.dumps(plan.to_json()))
        return
    for line in describe_plan(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def forecast_hours(out: Path) -> str:
    """A line on how long the new run in `out` will take on a CPU; empty for a short run, or on another device.

    Estimated from the number of operations, at the pace of a few steps of `tiny`.
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
        f"about {_show_hours(hours)} for {steps}, estimated from the number of operations at the measured pace of size tiny; a "
        "better estimate follows after some steps, or from --plan"
    )


def describe_plan(plan: Plan) -> list[str]:
    """The plan in lines."""
    from dagman.cli.progress import describe_bytes

    mean, low, high = plan.seconds
    energy = ", ".join(f"{value:.3g} kWh ({name})" for name, value in plan.energy_kwh.items())
    speeds = ", ".join(
        f"{size}: {'does not fit in memory' if speed is None else f'{speed:.3g} views/s'}"
        for size, speed in plan.micro_batches.items()
    )
    chosen, best = next(iter(plan.micro_batches)), plan.best_micro_batch
    loaders = count_noun(plan.loaders, "loader process", "loader processes") if plan.loaders else "no loader processes"
    suggestion = f"keep {chosen}" if best == chosen else f"set train.micro_batch={best}, which is faster"
    lines = [
        ("run", f"{count_noun(plan.steps, 'step')} of {plan.views} views from {count_noun(plan.scans, 'scan')} on {plan.device}"),
        *(("stores", line.removeprefix("stores: ")) for line in plan.stores),
        (
            "time",
            f"{_show_hours(plan.hours[0])}, 95 % interval {_show_hours(plan.hours[1])} to {_show_hours(plan.hours[2])}, at the "
            "machine's present load",
        ),
        (
            "step",
            f"{mean:.3g} s, 95 % interval {low:.3g} to {high:.3g} s ({plan.measured_steps} steps measured); "
            f"{plan.views / mean:.3g} views/s; {plan.waiting:.0%} of the time is spent waiting for data",
        ),
        ("evaluation", f"{plan.evaluation_seconds:.2g} s each, included in the time"),
        ("reading", f"{plan.reading:.3g} views/s by one process; {loaders}"),
        ("memory", f"{plan.memory_gib:.2f} GiB per {'process' if plan.device == 'cpu' else 'device'} at the peak"),
        ("disk", f"{describe_bytes(plan.disk_bytes)}, with {describe_bytes(plan.checkpoint_bytes)} per checkpoint"),
        ("energy", energy or "not available: the hardware does not measure it, or it cannot be read"),
        ("micro-batch", f"{suggestion} ({speeds})"),
        *(("slow", sentence) for sentence in plan.slow or ("nothing stands out.",)),
    ]
    return [f"{name:<12} {text}" for name, text in lines]


def _show_hours(hours: float) -> str:
    if hours >= 100:
        return f"{hours:,.0f} h ({hours / 24:,.0f} days)"
    return f"{hours * 3600:.0f} s" if hours < 1 / 60 else f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"
