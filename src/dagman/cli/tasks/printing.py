"""How a task's command runs: its progress while it does, then its measures, as tables or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dagman.evaluation.results import Measurement, Results, Summary
    from dagman.evaluation.statistics import Interval

_UNLIMITED = 10_000
"""Columns of a terminal in which any table fits."""


def run_task(
    name: str,
    run: Callable[[Callable[[str], None]], Results],
    *,
    out: Path | None = None,
    as_json: bool,
    remark: Callable[[], str] = str,
) -> None:
    """Run a task with its progress on the terminal (or in plain lines), write its page, and print what was measured.

    name: of the task in the registry, which knows the page of one model; several have that of a comparison. run: is given what it
    calls with each part that it begins. out: its folder, if run.log is to be kept there. remark: a last sentence on what was
    written, if any.
    """
    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.devices import tune_allocator
    from dagman.reports.tasks.comparison import write_comparison_report
    from dagman.tasks.registry import TASKS, load_part

    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    # Before the first scan: a third to a half of a scan's time in the encoder was freed memory paid for again (decision 0008).
    tune_allocator()
    with follow_parts(console, out) as notify:
        results = run(notify)
        notify("writing the report")
        several = len(results.command["inputs"]["models"]) > 1
        page = (write_comparison_report if several else load_part(TASKS[name].page))(results)
    if as_json:
        typer.echo(format_results(results.path, page))
        return
    print_measures(console, results.summary, page)
    print_differences(console, results.summary)
    if last := remark():
        console.print(last, markup=False)


def format_results(out: Path, page: Path) -> str:
    """What a script reads: the folder, its page, and all that metrics.json holds, as JSON."""
    return json.dumps({"out": str(out), "report": str(page), **json.loads((out / "metrics.json").read_text(encoding="utf-8"))})


def print_measures(console: Console, summary: Summary, page: Path) -> None:
    """Notes, a table of measures with their intervals, and where the page lies: a column a model where they fit, else a row."""
    from dagman.reports.names import explain_intervals

    for note in summary.notes:
        console.print(f"[dim]·[/] {escape_markup(note.text)}")
    beside = _tabulate_beside(summary)
    wanted = console.measure(beside, options=console.options.update(width=_UNLIMITED)).maximum
    console.print(beside if wanted <= console.width else _tabulate_below(summary))
    for sentence in explain_intervals(summary.measurements):
        console.print(f"[dim]·[/] {escape_markup(sentence)}")
    console.print(f"written: {page}", markup=False)


def print_differences(console: Console, summary: Summary) -> None:
    """Each paired difference with its interval and p, and for how many comparisons it is corrected; nothing for one model."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    from dagman.reports.names import format_p, name_measure

    if not summary.comparisons:
        return
    columns = (Column("first - second", min_width=18, overflow="fold"), "method", "measure", Column("value", no_wrap=True))
    shown = Table(*columns, "p", "p (Holm)", box=SIMPLE_HEAD)
    for row in summary.comparisons:
        low, high = row.difference.low, row.difference.high
        value = f"{row.difference.value:+.3f}\n{f'{low:+.2f} to {high:+.2f}' if math.isfinite(low + high) else '–'}"
        names = escape_markup(f"{row.first}\n- {row.second}")
        p, corrected = format_p(row.difference.p), "primary" if row.primary else format_p(row.corrected)
        shown.add_row(names, f"{row.method}\n{row.subset}", name_measure(row.name), value, p, corrected)
    console.print(shown)
    if summary.comparisons[0].primary:
        others = len(summary.comparisons) - 1
        rest = f"; p (Holm) of the {others} others is corrected for multiple testing" if others > 1 else ""
        console.print(f"The primary endpoint is tested alone{rest}.")
    elif len(summary.comparisons) == 1:
        console.print("1 paired comparison: p (Holm) is p.")
    else:
        console.print(f"{len(summary.comparisons)} paired comparisons; p (Holm) is corrected for multiple testing.")


def _tabulate_beside(summary: Summary) -> Table:
    from rich.table import Column, Table

    models = list(dict.fromkeys(row.model for row in summary.measurements))
    held = {(row.method, row.subset, row.name, row.model): row.interval for row in summary.measurements}
    shown = Table("method", "labels", "measure", *(Column(escape_markup(name)) for name in models))
    for method, subset, name in dict.fromkeys(key[:3] for key in held):
        intervals = [held.get((method, subset, name, model)) for model in models]
        shown.add_row(method, subset, name.replace("_", " "), *("\n".join(_show_interval(one)) if one else "" for one in intervals))
    return shown


def _tabulate_below(summary: Summary) -> Table:
    from rich.table import Column, Table

    wide = Column("model", overflow="fold", min_width=14)
    shown = Table(
        "method",
        "labels",
        Column("measure", min_width=11, overflow="fold"),
        wide,
        Column("value", no_wrap=True),
        Column("95 %", no_wrap=True),
    )
    before = None
    for row in sorted(summary.measurements, key=_find_order(summary)):
        group = (row.method, row.subset, row.name)
        if before not in (None, group):
            shown.add_section()
        leading = (row.method, row.subset, row.name.replace("_", " ")) if group != before else ("", "", "")
        shown.add_row(*leading, escape_markup(row.model), *_show_interval(row.interval))
        before = group
    return shown


def _find_order(summary: Summary) -> Callable[[Measurement], int]:
    """The place of a measurement's group among the groups as they come, so that models stand below each other."""
    places: dict[tuple[str, str, str], int] = {}
    for row in summary.measurements:
        places.setdefault((row.method, row.subset, row.name), len(places))
    return lambda row: places[row.method, row.subset, row.name]


def _show_interval(interval: Interval) -> tuple[str, str]:
    """A value and its interval in words; n/a where there is no number: `explain_intervals` gives the reason."""
    from dagman.reports.names import NOT_KNOWN

    value = f"{interval.value:.3f}" if math.isfinite(interval.value) else NOT_KNOWN
    return value, f"{interval.low:.2f} to {interval.high:.2f}" if math.isfinite(interval.low + interval.high) else NOT_KNOWN


def escape_markup(text: str) -> str:
    """Text that rich prints as it stands: a path may hold brackets."""
    from rich.markup import escape

    return escape(text)
