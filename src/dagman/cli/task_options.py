"""What the options of the task commands hold, parsed; and how their measures are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dagman.store.manifest import Store
    from dagman.tasks.results import Summary


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
            f"--{option} {text!r} is no list of numbers", do="Write numbers between commas, such as 25,50,100"
        ) from None


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
    """Notes, a table of measures with their intervals (a row a measure, a column a model), and where the page lies."""
    from rich.table import Column, Table

    for note in summary.notes:
        console.print(f"[dim]·[/] {escape_markup(note)}")
    models = list(dict.fromkeys(row.model for row in summary.measurements))
    keys = list(dict.fromkeys((row.method, row.subset, row.name) for row in summary.measurements))
    held = {(row.method, row.subset, row.name, row.model): row.interval for row in summary.measurements}
    shown = Table("method", "labels", "measure", *(Column(escape_markup(name), overflow="fold") for name in models))
    for method, subset, name in keys:
        intervals = [held.get((method, subset, name, model)) for model in models]
        cells = ["" if one is None else f"{one.value:.3f}\n{one.low:.2f}–{one.high:.2f}" for one in intervals]
        shown.add_row(method, subset, name.replace("_", " "), *cells)
    console.print(shown)
    console.print(f"written: {page}", markup=False)


def escape_markup(text: str) -> str:
    """Text that rich prints as it stands: a path may hold brackets."""
    from rich.markup import escape

    return escape(text)
