"""The demo's page: what was done, what the probes say, in numbers and in words, and where each run's page lies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dagman.records.counts import count_noun
from dagman.records.files import write_text
from dagman.reports.page import Block, DataTable, Listing, Section, Text, Verdict, render_page
from dagman.reports.run.run_page import show_gallery
from dagman.tasks.probing import ProbeScore
from dagman.training.run import Run

PRETRAINED, FRESH = "pretrained", "fresh"


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """A probed question: its scores, and the measure they are given in."""

    title: str
    measure: str
    scores: Sequence[ProbeScore]


def write_demo_report(folder: Path, runs: Sequence[Run], tasks: Sequence[DemoTask], seconds: Mapping[str, float]) -> Path:
    """Write `report.html` into the demo's folder and return its path."""
    path = folder / "report.html"
    write_text(path, render_demo(runs, tasks, seconds))
    return path


def render_demo(runs: Sequence[Run], tasks: Sequence[DemoTask], seconds: Mapping[str, float]) -> str:
    """The page as HTML."""
    settings = runs[0].settings
    lead = (
        f"The whole road on synthetic CTs: {count_noun(len(runs), 'pretraining')} of the `{settings.size}` encoder by "
        f"`{settings.method}`, {settings.train.steps} steps of {settings.train.batch} views each, then probes of frozen features. "
        f"{sum(seconds.values()) / 60:.1f} minutes in all. Means over seeds with their standard deviation, as they fell."
    )
    sections = [
        Section("What the probes say", [block for task in tasks for block in _show_task(task)]),
        Section("Did pretraining work?", _judge_runs(runs)),
        *show_gallery(runs[0], settings),
        Section("The runs", [Listing([f"runs/{run.path.name}/report.html: seed {run.settings.seed}" for run in runs])]),
        Section("Time", [DataTable(["part", "seconds"], [[part, round(value, 1)] for part, value in seconds.items()])]),
    ]
    return render_page("dagman demo", lead, sections, footer="Made by `dagman demo`. This page loads nothing from elsewhere.")


def tabulate_scores(task: DemoTask) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a task's table: a row a model, a column a probe, "mean ± deviation" (of one seed the value alone)."""
    probes = list(dict.fromkeys(score.probe for score in task.scores))
    models = list(dict.fromkeys(score.model for score in task.scores))
    by_key = {(score.model, score.probe): score for score in task.scores}
    rows = [[model, *(_state(by_key[model, p]) for p in probes)] for model in models]
    return ["model", *probes], rows


def explain_scores(task: DemoTask) -> list[tuple[str, str]]:
    """Verdicts in words (level, text), a probe each: whether pretraining helped, and who wins when it did not."""
    found = []
    for probe in dict.fromkeys(score.probe for score in task.scores):
        scores = {score.model: score for score in task.scores if score.probe == probe}
        ours, fresh = scores[PRETRAINED], scores[FRESH]
        gains = [a - b for a, b in zip(ours.values, fresh.values, strict=True)]
        mean = sum(gains) / len(gains)
        if len(gains) == 1:
            text, level = f"one seed, which tells nothing of chance: pretrained less fresh {mean:+.3f}", "warn"
        elif min(gains) > 0:
            text, level = f"pretraining helps at every seed, by {mean:+.3f} on average", "ok"
        elif max(gains) < 0:
            text, level = f"the fresh encoder wins at every seed, by {-mean:.3f} on average", "warn"
        else:
            text, level = (
                f"pretraining changes little ({mean:+.3f} on average, {sum(g > 0 for g in gains)} of {len(gains)} seeds better)",
                "warn",
            )
        others = {name: score for name, score in scores.items() if name not in (PRETRAINED, FRESH)}
        best = max(others.values(), key=lambda score: score.mean)
        if best.mean > ours.mean:
            text += f"; {best.model} is better still ({best.mean:.3f} against {ours.mean:.3f})"
            level = "warn"
        found.append((level, f"{task.title}, {probe}: {text}."))
    return found


def _state(score: ProbeScore) -> str:
    return f"{score.mean:.3f} ± {score.spread:.3f}" if math.isfinite(score.spread) else f"{score.mean:.3f}"


def _show_task(task: DemoTask) -> list[Block]:
    columns, rows = tabulate_scores(task)
    verdicts: list[Block] = [Verdict(level, text) for level, text in explain_scores(task)]  # type: ignore[arg-type]
    return [Text(f"**{task.title}** ({task.measure}; 5 folds by patient)"), DataTable(columns, rows), *verdicts]


def _judge_runs(runs: Sequence[Run]) -> list[Block]:
    rows = []
    for run in runs:
        last = run.monitors[-1]
        restored = last["reconstruction"]
        row = [run.settings.seed, f"{restored['student']:.3f}", f"{restored['best']:.3f}", f"{restored['ratio']:.2f}"]
        for name in ("ampd", "aitd", "gitd"):
            watched = last["projectors"][name]
            row.append(f"{watched['H']:.2f} / {watched['MI']:.2f} / {watched['gain']:+.2f}")
        rows.append(row)
    columns = [
        "seed",
        "AMIP (L1)",
        "best trivial answer",
        "ratio",
        "AMPD H / MI / gain",
        "AITD H / MI / gain",
        "GITD H / MI / gain",
    ]
    text = (
        "The reconstruction is worth something when its error lies below the best of three trivial answers (ratio under 1). "
        "Targets are alive when they differ between samples (MI well above 0) without being uniform (H well below 1); gain above 0 "
        "means that the student predicts them better than one constant answer would."
    )
    return [Text(text), DataTable(columns, rows)]
