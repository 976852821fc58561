"""The report of several runs: their states, the settings that differ, and their curves in common plots."""

from __future__ import annotations

import math
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
"""Maximum number of points of a curve; longer ones are thinned evenly, as the figure cannot show more."""
_LEAST_GAIN = -10.0
"""Gain at which lower values are drawn: that of targets that hardly differ grows without bounds, and would hide all others."""
_LOSSES = {
    "total": "The weighted sum of the other losses.",
    "amip": "The mean absolute error of the reconstructed voxels.",
    "ampd": "The cross entropy of the patch targets and their predictions.",
    "aitd": "The cross entropy of the [CLS] targets and their predictions.",
    "gitd": "The cross entropy of the view targets and their predictions.",
}
_SAME = "0: all samples have the same target."
_MEASURED = {
    "Reconstruction against the best trivial baseline": (
        "ratio of errors",
        ("reconstruction", "ratio"),
        "Below 1, the student reconstructs better than the best of three trivial baselines.",
    ),
    "Mutual information of targets and samples, AMPD": ("fraction of the maximum", ("projectors", "ampd", "MI"), _SAME),
    "Mutual information of targets and samples, GITD": ("fraction of the maximum", ("projectors", "gitd", "MI"), _SAME),
    "Gain of AMPD over a constant prediction": (
        "gain",
        ("projectors", "ampd", "gain"),
        f"Above 0, the student predicts the patch targets better than a constant. Values below {_LEAST_GAIN:g} are drawn there.",
    ),
    "Effective rank of the features": ("directions", ("features", "effective_rank"), "1: all features lie on one line."),
    "Entropy of the attention": ("fraction of ln N", ("attention", "entropy"), "1: the attention is uniform."),
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
    losses = [_overlay(steps, f"{'Total' if key == 'total' else key.upper()} loss", "loss", (key,), _LOSSES[key]) for key in LOSSES]
    monitored = [
        _overlay(evaluations, title, y, keys, caption, log=y == "ratio of errors")
        for title, (y, keys, caption) in _MEASURED.items()
    ]
    course = [
        _overlay(steps, "Learning rate", "lr", ("lr",), "As scheduled: warm-up, then a cosine decay."),
        _overlay(steps, "Gradient norm", "norm before clipping", ("grad_norm",), "On a logarithmic scale.", log=True),
        _overlay(timings, "Throughput", "views per second", ("views_per_s",), "Of whole steps, reading included."),
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
            others = f" {state.others} more in its own report." if state.others else ""
            verdicts.append(Verdict(LEVELS[state.light], f"`{name}`: {state.light}. {state.text}{remedy}{others}"))
    caption = "Losses of the last step."
    if len(states) > 1:
        caption += " In the figures below, each run has one colour, the same in all of them."
    return [DataTable(["run", "state", "method", "size", "seed", "steps", *LOSSES], rows, caption), *verdicts]


def _compare_settings(named: Mapping[str, Run]) -> list[Block]:
    flat = {name: flatten_values(run.settings.model_dump()) for name, run in named.items()}
    keys = sorted({key for values in flat.values() for key in values if len({repr(other.get(key)) for other in flat.values()}) > 1})
    if not keys:
        return [Text("None: the runs have the same settings.")] if len(named) > 1 else []
    return [DataTable(["key", *flat], [[key, *(str(values.get(key)) for values in flat.values())] for key in keys])]


def _overlay(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], title: str, y: str, keys: Sequence[str], caption: str, *, log: bool = False
) -> Figure | None:
    least = _LEAST_GAIN if keys[-1] == "gain" else -math.inf
    series = {}
    for number, (name, own) in enumerate(rows.items()):
        points = [(row["step"], max(value, least)) for row in own if isinstance(value := _reach(row, keys), int | float)]
        if points:
            steps, values = zip(*points, strict=True)
            series[name] = Series(steps, values, color=CYCLE[number % len(CYCLE)], dashed=number >= len(CYCLE))
    if not series:
        return None
    drawn = draw_curves(series, title=title, y=y, log=log)
    # Only the first runs are described in words; the table above contains the last values of all.
    words = describe_course(title, dict(islice(series.items(), 8)))
    return Figure(encode_png(drawn), caption, words)


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
