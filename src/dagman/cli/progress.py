"""What a terminal shows while scans are prepared and an encoder is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_LOSSES = ("amip", "ampd", "aitd", "gitd")


@contextmanager
def show_training(console: Console) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A listener for `dagman.pretrain`: choices and warnings as lines, steps as a bar with losses and the time left."""
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
    with Progress(*columns, console=console, transient=False) as progress:
        task: list[Any] = []

        def tell(name: str, values: dict[str, Any]) -> None:
            if name == "part":
                progress.console.print(f"[bold]{values['text']}[/]", highlight=False)
            elif name == "choice":
                progress.console.print(f"[dim]·[/] {values['text']}", highlight=False)
            elif name == "warning":
                progress.console.print(f"[yellow]![/] step {values['step']}: {values['text']}", highlight=False)
            elif name == "begin":
                task.append(progress.add_task("pretrain", total=values["steps"], completed=values["step"], losses=""))
            elif name == "step" and task:
                losses = " ".join(f"{key} {values[key]:.3f}" for key in _LOSSES if key in values)
                progress.update(task[0], completed=values["step"], losses=f"{losses} · {values['views_per_s']:.1f} views/s")

        yield tell
