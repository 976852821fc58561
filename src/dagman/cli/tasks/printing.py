"""Running a task from the command line: its progress, then its measures, as tables or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dagman.evaluation.results import Measurement, Results, Summary
    from dagman.evaluation.statistics import Interval
    from dagman.notes import Note

_UNLIMITED = 10_000
"""Width of a terminal, in columns, that fits any table."""
_MAIN = 3
"""Measures of each structure that are printed."""


def run_task(
    name: str,
    run: Callable[[Callable[[str], None]], Results],
    *,
    out: Path | None = None,
    as_json: bool,
    remark: Callable[[], str] = str,
    notes: Sequence[Note] = (),
) -> None:
    """Run a task with its progress on the terminal (or in plain lines), write its page, and print the measures.

    name: The task's name in the registry, which knows the page for one model; several models have the page of a comparison.
    run: The task; its argument is called at the start of each part. out: The task's folder, if run.log is to be kept there.
    remark: A last sentence on what was written, if any. notes: On the table, printed before the work starts.
    """
    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.devices import tune_allocator
    from dagman.reports.tasks.comparison import write_comparison_report
    from dagman.tasks.registry import TASKS, load_part

    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    # Before the first scan: a third to a half of a scan's time in the encoder went into reallocating memory (decision 0008).
    tune_allocator()
    _print_notes(console, [note.text for note in notes])
    with follow_parts(console, out) as notify:
        results = run(notify)
        notify("writing the report")
        several = len(results.command["inputs"]["models"]) > 1
        page = (write_comparison_report if several else load_part(TASKS[name].page))(results)
    if as_json:
        typer.echo(format_results(results.path, page))
        return
    print_measures(console, results.summary, page, printed={note.text for note in notes})
    print_differences(console, results.summary)
    if last := remark():
        console.print(last, markup=False)


def format_results(out: Path, page: Path) -> str:
    """The folder, its page, and everything in metrics.json, as JSON for scripts."""
    return json.dumps({"out": str(out), "report": str(page), **json.loads((out / "metrics.json").read_text(encoding="utf-8"))})


def print_measures(console: Console, summary: Summary, page: Path, *, printed: Collection[str] = ()) -> None:
    """Print notes, a table of measures with their intervals, and the path of the page.

    Models are columns if they fit, otherwise rows. Of several structures, each has one row with its main measures. printed: Notes
    that were printed before.
    """
    from dagman.reports.names import explain_intervals

    _print_notes(console, [note.text for note in summary.notes if note.text not in printed])
    if any(":" in row.name for row in summary.measurements):
        console.print(_tabulate_structures(summary))
        console.print(
            f"All {len(summary.measurements)} values and their intervals are in metrics.json, the scores of each scan in "
            f"predictions.csv, in {page.parent}.",
            markup=False,
        )
    else:
        beside = _tabulate_beside(summary)
        wanted = console.measure(beside, options=console.options.update(width=_UNLIMITED)).maximum
        console.print(beside if wanted <= console.width else _tabulate_below(summary))
    for sentence in explain_intervals(summary.measurements):
        console.print(f"[dim]·[/] {escape_markup(sentence)}")
    console.print(f"written: {page}", markup=False)


def print_differences(console: Console, summary: Summary) -> None:
    """Print each paired difference with its interval and p, and the number of comparisons it is corrected for, if there are any."""
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


def _print_notes(console: Console, texts: Sequence[str]) -> None:
    for text in texts:
        console.print(f"[dim]·[/] {escape_markup(text)}")


def _tabulate_structures(summary: Summary) -> Table:
    """A row for all structures together, then one for each; the first measures that were computed, Dice with its interval."""
    from rich.table import Column, Table

    from dagman.reports.names import name_measure

    held = {(row.model, row.subset, row.name): row.interval for row in summary.measurements}
    measures = list(dict.fromkeys(row.name.partition(":")[0] for row in summary.measurements))[:_MAIN]
    several = len({row.model for row in summary.measurements}) > 1
    columns = [Column("model", overflow="fold"), "labels"] if several else ["labels"]
    shown = Table(*columns, Column("structure", overflow="fold"), *(Column(name_measure(name), no_wrap=True) for name in measures))
    rows = dict.fromkeys((row.model, row.subset, row.name.partition(":")[2]) for row in summary.measurements)
    before = None
    for model, subset, structure in rows:
        if before not in (None, (model, subset)):
            shown.add_section()
        leading = [escape_markup(model), subset] if several else [subset]
        if before == (model, subset):
            leading = [""] * len(leading)
        before = (model, subset)
        cells = []
        for number, name in enumerate(measures):
            interval = held.get((model, subset, f"{name}:{structure}" if structure else name))
            value, bounds = ("", "") if interval is None else _show_interval(interval)
            cells.append(f"{value} ({bounds})" if value and not number else value)
        shown.add_row(*leading, escape_markup(structure or "all"), *cells)
    return shown


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
    """The position of a measurement's group, in order of appearance, so that models are listed below each other."""
    places: dict[tuple[str, str, str], int] = {}
    for row in summary.measurements:
        places.setdefault((row.method, row.subset, row.name), len(places))
    return lambda row: places[row.method, row.subset, row.name]


def _show_interval(interval: Interval) -> tuple[str, str]:
    """A value and its interval as text; n/a if there is no number, which `explain_intervals` explains."""
    from dagman.reports.names import NOT_KNOWN

    value = f"{interval.value:.3f}" if math.isfinite(interval.value) else NOT_KNOWN
    return value, f"{interval.low:.2f} to {interval.high:.2f}" if math.isfinite(interval.low + interval.high) else NOT_KNOWN


def escape_markup(text: str) -> str:
    """Text that rich prints literally, because a path may contain brackets."""
    from rich.markup import escape

    return escape(text)
