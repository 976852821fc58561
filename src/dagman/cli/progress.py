"""What a terminal shows while scans are prepared and an encoder is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from dagman.store.estimate import Estimate
    from dagman.store.writer import Progress

_LOSSES = ("amip", "ampd", "aitd", "gitd")


@contextmanager
def show_preparing(console: Console) -> Iterator[Callable[[Estimate | Progress], None]]:
    """A listener for `dagman.prepare`: the estimate as a line, then a bar with the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from dagman.store.estimate import Estimate

    columns = (
        TextColumn("preparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task("prepare")

    def notify(event: Estimate | Progress) -> None:
        if isinstance(event, Estimate):
            console.print(_describe_estimate(event), highlight=False)
            bar.update(task, total=event.series)
            if event.series:
                bar.start()
        else:
            bar.update(task, completed=event.done)
            if event.done == event.total:
                bar.stop()

    with _stopped_at_end(bar):
        yield notify


@contextmanager
def show_training(console: Console) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A listener for `dagman.pretrain`: choices and warnings as lines, steps as a bar with losses and the time left."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    bar = Progress(*columns, console=console)

    def notify(name: str, values: dict[str, Any]) -> None:
        if name == "part":
            console.print(f"[bold]{escape(values['text'])}[/]", highlight=False, soft_wrap=True)
        elif name == "choice":
            console.print(f"[dim]·[/] {escape(values['text'])}", highlight=False, soft_wrap=True)
        elif name == "warning":
            console.print(f"[yellow]![/] step {values['step']}: {escape(values['text'])}", highlight=False, soft_wrap=True)
        elif name == "begin":
            # Not before: one console shows one bar at a time, and scans may be prepared first.
            bar.start()
            bar.add_task("pretrain", total=values["steps"], completed=values["step"], losses="")
        elif name == "step":
            losses = " ".join(f"{key} {values[key]:.3f}" for key in _LOSSES if key in values)
            bar.update(bar.task_ids[-1], completed=values["step"], losses=f"{losses} · {values['views_per_s']:.1f} views/s")

    with _stopped_at_end(bar):
        yield notify


@contextmanager
def _stopped_at_end(bar: Bar) -> Iterator[None]:
    try:
        yield
    finally:
        if bar.live.is_started:
            bar.stop()


def describe_bytes(count: float) -> str:
    """A number of bytes to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def describe_seconds(seconds: float) -> str:
    """A duration to what a user plans with."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _describe_estimate(estimate: Estimate) -> str:
    if not estimate.series:
        return "Nothing to prepare: " + ("all is there already." if estimate.done else "no series can be used.")
    done = f", {estimate.done} are there already" if estimate.done else ""
    text = (
        f"{estimate.series} series to prepare{done}: about {describe_bytes(estimate.bytes)} "
        f"and {describe_seconds(estimate.seconds)} with {estimate.workers} process{'es' if estimate.workers > 1 else ''}; "
        f"{describe_bytes(estimate.free_bytes)} free."
    )
    return text + (" [red]That may not fit.[/red]" if estimate.bytes > estimate.free_bytes else "")
