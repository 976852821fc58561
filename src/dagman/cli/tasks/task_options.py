"""What the options of the task commands hold, parsed; and how their measures are printed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dagman.evaluation.results import Measurement, Summary
    from dagman.evaluation.statistics import Interval
    from dagman.store.manifest import Store

CropMm = Annotated[float | None, typer.Option(help="Side in mm of crops around structures. Default: from their size.")]
Weights = Annotated[str, typer.Option(help="Whose weights of a run are read: teacher, student, or auto (the teacher's).")]
ModelsAndTable = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL... TABLE",
        help="One or more of: a run, an encoder folder, scratch:SIZE, resnet3d:SIZE, monai:PATH, radiomics:size, pixels, "
        "histogram; then the table (CSV, Parquet or Excel): one row for each scan, structure (mask) or point (center_x_mm, ...).",
    ),
]
LayerDecay = Annotated[
    float | None, typer.Option(help="Fine-tuning: factor of the rate from layer to layer downwards, for every model. Default: 1.")
]
Finetuning = Annotated[str, typer.Option(help="Fine-tuning preset: short, or paper (1,000 epochs at 2e-4).")]
CropSpacing = Annotated[float | None, typer.Option(help="Voxel size in mm of these crops. Default: from their size.")]
Ids = Annotated[
    str,
    typer.Option(
        help="checked: refuse patients or labels that differ only in leading zeros, case, blanks or dashes; exact: keep them apart."
    ),
]
Identified = Annotated[
    bool,
    typer.Option(
        "--identified", help="DICOM SEGs name patient and study as their sources do. Default: a pseudonym and UIDs alone."
    ),
]


def _set_key(path: Path | None) -> Path | None:
    if path is not None:
        # By the environment it reaches the processes that a command starts, too.
        os.environ["DAGMAN_KEY"] = str(path)
    return path


KeyPath = Annotated[
    Path | None,
    typer.Option(
        "--key",
        callback=_set_key,
        help="File of the key that turns PatientIDs and file names into pseudonyms. Default: DAGMAN_KEY, else the user's own.",
        show_default=False,
    ),
]

_UNLIMITED = 10_000
"""Columns of a terminal in which any table fits."""


def split_models(command: str, models_and_table: list[str]) -> tuple[list[str], Path]:
    """The models and the table of a task's command; raises SettingsError when no model was given."""
    from dagman.errors import SettingsError

    *models, table = models_and_table
    if not models:
        do = f"Name an encoder before {table}, such as scratch:tiny"
        raise SettingsError(f"{command} takes one or more models and a table", do=do)
    return models, Path(table)


def split_names(text: str) -> tuple[str, ...]:
    """Names between commas; none for an empty text."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def split_numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers between commas; raises SettingsError naming the option."""
    from dagman.errors import SettingsError

    try:
        return tuple(float(part) for part in split_names(text))
    except ValueError:
        raise SettingsError(
            f"--{option} {text!r} is not a list of numbers", do="Write numbers between commas, such as 25,50,100"
        ) from None


def split_counts(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers between commas; raises SettingsError naming the option."""
    from dagman.errors import SettingsError

    numbers = split_numbers(option, text)
    broken = [number for number in numbers if not number.is_integer()]
    if broken:
        raise SettingsError(
            f"--{option} {broken[0]:g} is not a whole number", do="Write whole numbers between commas, such as 1,5,10"
        )
    return tuple(int(number) for number in numbers)


def open_store(path: Path | None) -> tuple[Store | None, list[str]]:
    """The store that holds a table's scans, and the ids it knows; nothing without a path."""
    from dagman.store.manifest import Store

    if path is None:
        return None, []
    store = Store(path)
    return store, [row.id for row in store.rows]


def format_results(out: Path, page: Path) -> str:
    """What a script reads: the folder, its page, and all that metrics.json holds, as JSON."""
    return json.dumps({"out": str(out), "report": str(page), **json.loads((out / "metrics.json").read_text(encoding="utf-8"))})


def print_measures(console: Console, summary: Summary, page: Path) -> None:
    """Notes, a table of measures with their intervals, and where the page lies: a column a model where they fit, else a row."""
    for note in summary.notes:
        console.print(f"[dim]·[/] {escape_markup(note)}")
    beside = _tabulate_beside(summary)
    wanted = console.measure(beside, options=console.options.update(width=_UNLIMITED)).maximum
    console.print(beside if wanted <= console.width else _tabulate_below(summary))
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
        p, corrected = format_p(row.difference.p), format_p(row.corrected)
        shown.add_row(names, f"{row.method}\n{row.subset}", name_measure(row.name), value, p, corrected)
    console.print(shown)
    if len(summary.comparisons) == 1:
        console.print("1 paired comparison: p (Holm) is p.")
    else:
        console.print(f"{len(summary.comparisons)} paired comparisons; p (Holm) is corrected for their number.")


def _tabulate_beside(summary: Summary) -> Table:
    from rich.table import Column, Table

    models = list(dict.fromkeys(row.model for row in summary.measurements))
    held = {(row.method, row.subset, row.name, row.model): row.interval for row in summary.measurements}
    shown = Table("method", "labels", "measure", *(Column(escape_markup(name)) for name in models))
    for method, subset, name in dict.fromkeys(key[:3] for key in held):
        intervals = [held.get((method, subset, name, model)) for model in models]
        shown.add_row(method, subset, name.replace("_", " "), *("\n".join(_say_interval(one)) if one else "" for one in intervals))
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
        said = (row.method, row.subset, row.name.replace("_", " ")) if group != before else ("", "", "")
        shown.add_row(*said, escape_markup(row.model), *_say_interval(row.interval))
        before = group
    return shown


def _find_order(summary: Summary) -> Callable[[Measurement], int]:
    """The place of a measurement's group among the groups as they come, so that models stand below each other."""
    places: dict[tuple[str, str, str], int] = {}
    for row in summary.measurements:
        places.setdefault((row.method, row.subset, row.name), len(places))
    return lambda row: places[row.method, row.subset, row.name]


def _say_interval(interval: Interval) -> tuple[str, str]:
    """A value and its interval in words; a dash where there is no number."""
    value = f"{interval.value:.3f}" if math.isfinite(interval.value) else "–"
    return value, f"{interval.low:.2f} to {interval.high:.2f}" if math.isfinite(interval.low + interval.high) else "–"


def escape_markup(text: str) -> str:
    """Text that rich prints as it stands: a path may hold brackets."""
    from rich.markup import escape

    return escape(text)
