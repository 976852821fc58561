"""The report of several runs: their states, the settings that differ, and their curves in common plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dagman.records.files import write_text
from dagman.reports.figures import Series, draw_curves, encode_png
from dagman.reports.page import Block, DataTable, Figure, FigureGrid, Section, Text, Verdict, render_page
from dagman.reports.provenance import flatten_values
from dagman.reports.run.curves import describe_course
from dagman.reports.run.verdicts import LEVELS
from dagman.reports.style import CYCLE
from dagman.training.monitoring.overview import RunState, describe_state
from dagman.training.run import LOSSES, Run

_POINTS = 1000
"""Maximum number of points of a curve; longer ones are thinned evenly, as a figure cannot show more."""
_MEASURED = {
    "Reconstruction against the best trivial baseline": ("ratio", ("reconstruction", "ratio")),
    "Mutual information of targets and samples, AMPD": ("fraction of the maximum", ("projectors", "ampd", "MI")),
    "Mutual information of targets and samples, GITD": ("fraction of the maximum", ("projectors", "gitd", "MI")),
    "Prediction of the targets, gain of AMPD": ("gain", ("projectors", "ampd", "gain")),
    "Effective rank of the features": ("directions", ("features", "effective_rank")),
    "Entropy of the attention": ("fraction of ln N", ("attention", "entropy")),
}


def write_runs_page(runs: Sequence[Run], path: Path) -> Path:
    """Write the report of several runs to `path` and return the path."""
    write_text(path, render_runs(runs))
    return path


def render_runs(runs: Sequence[Run]) -> str:
    """Render the report as HTML."""
    states = {name: describe_state(run.path) for name, run in name_runs(runs).items()}
    named = {name: run for name, run in name_runs(runs).items() if states[name].state != "damaged"}
    steps = {name: _thin(run.steps) for name, run in named.items()}
    evaluations = {name: run.monitors for name, run in named.items()}
    timings = {name: _thin(run.timings) for name, run in named.items()}
    losses = [_overlay(steps, f"{'Total' if key == 'total' else key.upper()} loss", "loss", (key,)) for key in LOSSES]
    monitored = [_overlay(evaluations, title, y, keys) for title, (y, keys) in _MEASURED.items()]
    course = [
        _overlay(steps, "Learning rate", "lr", ("lr",)),
        _overlay(steps, "Gradient norm", "norm before clipping", ("grad_norm",), log=True),
        _overlay(timings, "Throughput", "views per second", ("views_per_s",)),
    ]
    sections = [
        Section("Runs", _list_states(states)),
        Section("Settings that differ", _compare_settings(named)),
        *(
            Section(title, _place(figures))
            for title, figures in (("Losses", losses), ("Monitors", monitored), ("Rates and speed", course))
        ),
    ]
    shown = "One pretraining run" if len(runs) == 1 else f"The overlaid curves of {len(runs)} pretraining runs"
    lead = f"{shown}; run `dagman report RUN` for a report of each."
    return render_page("Pretraining runs", lead, sections, footer="Made by dagman. This page needs no network connection.")


def name_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """Name each run by the shortest ending of its path that is unique, so that equal folder names get their parent folder."""
    paths = [run.path.resolve() for run in runs]
    depth = next(n for n in range(1, 99) if len({path.parts[-n:] for path in paths}) == len(set(paths)))
    return {"/".join(path.parts[-depth:]): run for path, run in zip(paths, runs, strict=True)}


def _list_states(states: Mapping[str, RunState]) -> list[Block]:
    rows = []
    for name, state in states.items():
        losses = [(state.losses or {}).get(key) for key in LOSSES]
        rows.append([name, state.state, state.method, state.size, state.seed, f"{state.step} of {state.steps}", *losses])
    verdicts: list[Block] = []
    for name, state in states.items():
        if state.light is None:
            verdicts.append(Verdict("warn", f"`{name}`: {state.problem or 'no step is complete yet.'}"))
        else:
            remedy = f" **What to try:** {state.remedy}" if state.remedy else ""
            text = state.text.replace(", explained below", ", explained in its own report")
            verdicts.append(Verdict(LEVELS[state.light], f"`{name}`: {state.light}. {text}{remedy}"))
    return [DataTable(["run", "state", "method", "size", "seed", "steps", *LOSSES], rows, "Losses of the last step."), *verdicts]


def _compare_settings(named: Mapping[str, Run]) -> list[Block]:
    flat = {name: flatten_values(run.settings.model_dump()) for name, run in named.items()}
    keys = sorted({key for values in flat.values() for key in values if len({repr(other.get(key)) for other in flat.values()}) > 1})
    if not keys:
        return [Text("None: the runs have the same settings.")] if len(named) > 1 else []
    return [DataTable(["key", *flat], [[key, *(str(values.get(key)) for values in flat.values())] for key in keys])]


def _overlay(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], title: str, y: str, keys: Sequence[str], *, log: bool = False
) -> Figure | None:
    series = {}
    for number, (name, own) in enumerate(rows.items()):
        points = [(row["step"], value) for row in own if isinstance(value := _reach(row, keys), int | float)]
        if points:
            steps, values = zip(*points, strict=True)
            series[name] = Series(steps, values, color=CYCLE[number % len(CYCLE)], dashed=number >= len(CYCLE))
    if not series:
        return None
    drawn = draw_curves(series, title=title, y=y, log=log)
    # Only the first runs are described in words; the table above contains the last values of all.
    words = describe_course(title, dict(islice(series.items(), 8)))
    return Figure(encode_png(drawn), f"**{title}.** Each run has one colour, the same in all figures.", words)


def _reach(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _thin(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return rows[:: max(1, -(-len(rows) // _POINTS))]


def _place(figures: Sequence[Figure | None]) -> list[Block]:
    drawn = [figure for figure in figures if figure is not None]
    return [FigureGrid(drawn)] if drawn else []
