"""Progress of a command: bars on a terminal, otherwise plain lines at regular intervals."""

from __future__ import annotations

import datetime
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from dagman.store.estimate import Estimate
    from dagman.store.writer import Progress
    from dagman.training.monitoring.verdicts import Verdict

T = TypeVar("T")

_LOSSES = ("amip", "ampd", "aitd", "gitd")
_SHOWN_WAITING = 0.05
"""Share of a step spent waiting for data from which it is shown beside the pace."""
FIRST, EVERY = 8.0, 30.0
"""Seconds before the first line, so that fast commands print none; and seconds between lines."""
LOG = "run.log"
_PARTS, _SECONDS = 3, 15.0
"""Number of parts, or of seconds, from which the remaining time is estimated."""
_COUNTED = re.compile(r"\b(\d+) of (\d+)\b")
"""The count in the name of a part."""
_BESIDE_LOSSES = 52
"""Width in columns of the training bar without losses: steps, elapsed and remaining time."""


class PlainLines:
    """Writes what a command is doing to stderr, unless `console` is a terminal, and to run.log in `folder` once that exists.

    As a context manager it repeats the latest line at the same interval while one part of the work takes long.

    Attributes:
        clock: Returns seconds, like `time.monotonic`.
        of: What the remaining time refers to, such as " of this part".
    """

    def __init__(
        self, console: Console, folder: Path | None = None, *, log: str = LOG, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console, self.folder, self.log, self.clock = console, folder, log, clock
        self.began = self.last = clock()
        self.first: tuple[float, int] | None = None
        self.done, self.shown, self.closed, self.of = 0, False, False, ""
        self.latest: tuple[str, int | None, int | None] | None = None
        self._lock = threading.RLock()
        self._ended = threading.Event()

    def __enter__(self) -> PlainLines:
        threading.Thread(target=self._repeat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _repeat(self) -> None:
        while not self._ended.wait(1.0):
            if self.latest is not None:
                self.state(*self.latest)

    def state(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Write a line if it is time for one, or the last of many; done, total: how far it is, for the time left."""
        if self.console.quiet:
            # One of several ranks: rank 0 writes for all.
            return
        with self._lock:
            self._state(text, done, total)

    def _state(self, text: str, done: int | None, total: int | None) -> None:
        now = self.clock()
        self.latest = (text, done, total)
        if done is None:
            # The counted part has ended; another kind of work follows.
            self.closed = False
        if done is not None:
            # Start counting again when another run has begun.
            if self.first is None or done < self.done:
                self.first, self.closed = (now, done), False
            self.done = done
        if self.closed:
            return
        ended = done is not None and done == total
        self.closed = ended
        due = now - self.last >= EVERY if self.shown else now - self.began >= FIRST
        if not (due or (ended and self.shown)):
            return
        self.shown, self.last = True, now
        line = f"{text} · {describe_seconds(now - self.began)} so far{self._estimate_left(now, done, total)}"
        if not self.console.is_terminal:
            self._print(line)
        if self.folder is not None and self.folder.is_dir():
            stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            # On a full disk, the work itself ends with its own error.
            with suppress(OSError), (self.folder / self.log).open("a", encoding="utf-8") as log:
                log.write(f"{stamp} {line}\n")

    def follow(self, items: Iterable[T], text: str, total: int | None) -> Iterator[T]:
        """Yield the items and count them; total: their number, or None if it is not known."""
        of_all = "" if total is None else f" of {total}"
        with self:
            self.state(f"{text} 0{of_all}", 0, total)
            for done, item in enumerate(items, 1):
                yield item
                self.state(f"{text} {done}{of_all}", done, total)

    def estimate_left(self, done: int | None, total: int | None) -> str:
        """The remaining time at the present pace, as the end of a line; empty until it can be estimated."""
        return self._estimate_left(self.clock(), done, total)

    def _estimate_left(self, now: float, done: int | None, total: int | None) -> str:
        if self.first is None or done is None or total is None or done >= total or done <= self.first[1]:
            return ""
        since, before = self.first
        # A single part is not representative: it includes the warm-up.
        if done - before < _PARTS and now - since < _SECONDS:
            return ""
        return f", about {describe_seconds((now - since) / (done - before) * (total - done))} left{self.of}"

    def _print(self, line: str) -> None:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(line)


@contextmanager
def follow_parts(
    console: Console, folder: Path | None = None, *, log: str = LOG, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """Give a function to call at the start of each part of the work: parts are shown on a terminal's last line, or as plain lines.

    Counted parts ("item 3 of 20") are shown with the remaining time. folder, log, clock: as in `PlainLines`.
    """
    from rich.markup import escape

    with PlainLines(console, folder, log=log, clock=clock) as lines, console.status("reading") as status:
        kind, lines.of = "", " of this part"

        def notify(text: str) -> None:
            nonlocal kind
            found = _COUNTED.search(text)
            # A part that starts is not done yet.
            done, total = (int(found[1]) - 1, int(found[2])) if found else (None, None)
            if found and text[: found.start()] != kind:
                kind, lines.first = text[: found.start()], None
            lines.state(text, done, total)
            status.update(escape(text + lines.estimate_left(done, total)))

        lines.state("reading")
        yield notify


@contextmanager
def show_preparing(console: Console, lines: PlainLines) -> Iterator[Callable[[Estimate | Progress], None]]:
    """A listener for `dagman.prepare`: the estimate as a line, then a bar, or plain lines."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from dagman.store.estimate import Estimate

    columns = (
        TextColumn("preparing"),
        BarColumn(bar_width=24),
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
            lines.state("preparing" if event.series else "reading the store")
            if event.series:
                bar.start()
        else:
            bar.update(task, completed=event.done)
            lines.state(f"preparing: {event.done} of {event.total} series", event.done, event.total)
            if event.done == event.total:
                bar.stop()

    with _stopped_at_end(bar):
        yield notify


@contextmanager
def show_training(console: Console, lines: PlainLines) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A listener for `dagman.pretrain`: choices and warnings as lines, steps as a bar with losses and the remaining time.

    Without a terminal, steps are plain lines.
    """
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    # With 80 columns, only the end of the losses is cut off.
    room = max(0, console.width - _BESIDE_LOSSES)
    columns = (
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    total, light = 0, ""

    def notify(name: str, values: dict[str, Any]) -> None:
        nonlocal total, light
        if name == "part":
            console.print(f"[bold]{escape(values['text'])}[/]", highlight=False, soft_wrap=True)
            lines.state(values["text"])
        elif name == "choice":
            console.print(f"[dim]·[/] {escape(values['text'])}", highlight=False, soft_wrap=True)
        elif name == "warning":
            console.print(f"[yellow]![/] step {values['step']}: {escape(values['text'])}", highlight=False, soft_wrap=True)
        elif name == "verdict":
            light = f"{values['light']} · "
        elif name == "progress":
            # Within one long step.
            lines.state(values["text"])
            if bar.task_ids:
                bar.update(bar.task_ids[-1], losses=values["text"].partition(": ")[2][:room])
        elif name == "begin":
            # Not earlier: a console shows one bar at a time, and scans may be prepared first.
            bar.start()
            total = values["steps"]
            lines.state("starting")
            bar.add_task("pretrain", total=values["steps"], completed=values["step"], losses="")
        elif name == "step":
            losses = light + " ".join(f"{key} {values[key]:.3f}" for key in _LOSSES if key in values)
            waiting = values.get("waiting_share", 0.0)
            pace = f"{values['views_per_s']:.1f} views/s" + (f", waiting {waiting:.0%}" if waiting > _SHOWN_WAITING else "")
            bar.update(bar.task_ids[-1], completed=values["step"], losses=f"{losses} · {pace}"[:room])
            lines.state(f"step {values['step']} of {total}: {losses}", values["step"], total)

    with _stopped_at_end(bar):
        yield notify


def print_verdicts(console: Console, judged: Sequence[Verdict]) -> None:
    """Print the status of a run, then each verdict that is not green with what to try."""
    from rich.text import Text

    from dagman.training.monitoring.verdicts import LIGHTS, sum_up

    colors = {"green": "green", "amber": "yellow", "red": "red"}
    total = sum_up(judged)
    grave = [one for light in LIGHTS[:2] for one in judged if one.light == light]
    for mark, one in [("", total), *(("  ", one) for one in grave)]:
        sentence = one.text.replace("**", "").replace("`", "") if one is total else one.plain
        line = Text.assemble(mark, (one.light, colors[one.light]), f"  {sentence}")
        console.print(line, soft_wrap=True, highlight=False)


@contextmanager
def _stopped_at_end(bar: Bar) -> Iterator[None]:
    try:
        yield
    finally:
        if bar.live.is_started:
            bar.stop()


def describe_bytes(count: float) -> str:
    """A number of bytes with a unit, to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def describe_seconds(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _describe_estimate(estimate: Estimate) -> str:
    if not estimate.series:
        return "Nothing to prepare: " + ("all series are already in the store." if estimate.done else "no series is usable.")
    done = f", {estimate.done} are already there" if estimate.done else ""
    text = (
        f"{estimate.series} series to prepare{done}: about {describe_bytes(estimate.bytes)} "
        f"and {describe_seconds(estimate.seconds)} with {estimate.workers} process{'es' if estimate.workers > 1 else ''}; "
        f"{describe_bytes(estimate.free_bytes)} free."
    )
    return text + (" [red]That may not fit.[/red]" if estimate.bytes > estimate.free_bytes else "")
