"""The report of a pretraining run: verdicts, pictures, curves with their normal ranges, settings, provenance."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dagman.records.files import write_text
from dagman.reports.methods import TITLE, quote_run
from dagman.reports.page import Block, DataTable, FigureGrid, Listing, Section, Text, render_page
from dagman.reports.provenance import flatten_values
from dagman.reports.run import curves, monitors, pictures, verdicts
from dagman.reports.viewer import Exhibit
from dagman.reports.viewer.examples import exhibit_views, link_viewer, write_viewer
from dagman.settings import Settings, load_settings, resolve_settings
from dagman.settings.presets import list_presets
from dagman.training.monitoring.health import judge_run
from dagman.training.run import Run


def write_run_report(run: Run, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not, to its folder or to `out`, and return the path."""
    path = out or run.path / "report.html"
    write_viewer(path, f"Views of {run.path.resolve().name}", exhibit_run(run))
    write_text(path, render_run(run, path))
    return path


def exhibit_run(run: Run) -> list[Exhibit]:
    """Prepare the views that were stored last for the viewer."""
    steps = run.gallery_steps
    return exhibit_views(run.gallery(steps[-1]), run.settings, run.gallery_sources(steps[-1])) if steps else []


def render_run(run: Run, page: Path | None = None) -> str:
    """Render the report as HTML; `page` is its future path, for links to the viewer next to it (None: no links)."""
    settings = run.settings
    steps, wanted = run.last_step, settings.train.steps
    lead = (
        f"Pretraining of a `{settings.size}` encoder by the method `{settings.method}`, seed {settings.seed}: {steps} of "
        f"{wanted} steps of {settings.train.batch} views of {settings.view.side}^3 voxels at {settings.view.spacing:g} mm."
    )
    sections = [
        Section("Health of the run", _give_verdict(run, settings)),
        Section("Size and settings of the run", [Listing([_state_choice(text) for text in run.choices])] if run.choices else []),
        *show_gallery(run, settings, page),
        *_show_curves(run, settings),
        Section("Warnings during the run", _list_warnings(run)),
        Section(TITLE, quote_run(run)),
        Section("Settings", _tabulate_settings(settings)),
        Section("Provenance", _describe_provenance(run.command)),
    ]
    return render_page(
        f"Pretraining run {run.path.resolve().name}",
        lead,
        sections,
        footer="Made by `dagman report`. This page needs no network connection.",
    )


def _give_verdict(run: Run, settings: Settings) -> list[Block]:
    judged = judge_run(run)
    measured = run.monitors
    seen = (
        f"{settings.train.monitor_views} fixed validation views, last measured after step {measured[-1]['step']}"
        if measured
        else "validation views not measured yet"
    )
    return [
        verdicts.summarize_verdicts(judged),
        Text(verdicts.state_progress(run.last_step, settings.train.steps)),
        Text(
            f"What each monitor shows ({seen}). The targets are the teacher's outputs for a sample, over K prototypes. **H** is "
            "their entropy as a fraction of ln K (1: uniform, 0: a single prototype). **MI**, mutual information, measures how "
            "much they distinguish samples (0: every sample has the same target, which is collapse). **Gain** measures how "
            "well the student predicts them (1: perfectly; 0: no better than a constant prediction)."
        ),
        *verdicts.show_verdicts(judged),
    ]


def show_gallery(run: Run, settings: Settings, page: Path | None = None) -> list[Section]:
    """Show the last validation views in sections: masks, reconstructions, attention, and one view over the steps."""
    steps = run.gallery_steps
    if not steps:
        return []
    gallery, sources = run.gallery(steps[-1]), run.gallery_sources(steps[-1])
    links = [] if page is None else link_viewer(page, exhibit_run(run))
    attention = pictures.show_attention(gallery, settings, sources)
    if not attention:
        attention = [Text(f"The method `{settings.method}` has no semantic attention, so there is no attention map.")]
    return [
        Section("Views and masks", [*pictures.show_masks(gallery, settings, sources), *links]),
        Section("Reconstructions", pictures.show_reconstructions(gallery, settings, sources)),
        Section("Attention", attention),
        Section("One view over the course of training", pictures.show_course(run)),
    ]


def _show_curves(run: Run, settings: Settings) -> list[Section]:
    rows, measured = run.steps, run.monitors
    diversity: list[Block] = [*_place(monitors.draw_attention_course(measured)), *_place(monitors.draw_diversity(measured))]
    if diversity:
        diversity = [Text(monitors.CLAIM), *diversity, *monitors.tabulate_diversity(measured)]
    speed = curves.draw_columns(curves.describe_timings(settings), run.timings, scale={"voxels_per_s": 1e-6})
    return [
        Section("Attention entropy and head diversity over time", diversity),
        Section("Losses", _place(curves.draw_columns(curves.describe_losses(settings), rows))),
        Section("Reconstruction against trivial baselines", _place(monitors.draw_reconstruction(measured))),
        Section("Targets and features", _place([*monitors.draw_targets(measured), *monitors.draw_features(measured)])),
        Section("Schedules and gradient", _place(curves.draw_columns(curves.describe_schedules(settings), rows))),
        Section("Speed, memory and data loading", [*_sum_up_time(run), *_place(speed)]),
    ]


def _state_choice(text: str) -> str:
    """Reformat a choice that was printed in aligned columns (what, how, why) as a sentence."""
    parts = re.split(r"\s{2,}", text.strip())
    return text if len(parts) < 3 else f"{parts[0]}: {parts[1]} ({' '.join(parts[2:])})"


def _place(figures: list[Any]) -> list[Block]:
    return [FigureGrid(figures)] if figures else []


def _sum_up_time(run: Run) -> list[Block]:
    rows = run.timings
    if not rows:
        return []
    seconds = sum(row["seconds"] for row in rows)
    steady = sorted(row["seconds"] for row in rows[1:] or rows)
    return [
        Text(
            f"{len(rows)} steps took {seconds / 60:.1f} minutes, without validation and checkpoints; a "
            f"step takes {steady[len(steady) // 2]:.2f} s (median), at {rows[-1]['memory_gib']:.2f} GiB of memory at the peak."
        )
    ]


def _list_warnings(run: Run) -> list[Block]:
    warnings = run.warnings
    if not warnings:
        return [Text("None.")]
    return [
        Text("Each warning is listed once, when it first occurs; the verdict above is from the last measurement."),
        DataTable(["step", "warning"], [[w["step"], w["text"]] for w in warnings]),
    ]


def _tabulate_settings(settings: Settings) -> list[Block]:
    values, described = flatten_values(settings.model_dump()), describe_fields(settings)
    tables: list[Block] = []
    if settings.size in list_presets("sizes") and settings.method in list_presets("methods"):
        usual = flatten_values(resolve_settings(load_settings(settings.size, settings.method)[0])[0].model_dump())
        changed = [[key, value, usual.get(key), described[key]] for key, value in values.items() if value != usual.get(key)]
        title = f"Settings that differ from the presets `{settings.size}` and `{settings.method}`."
        tables.append(
            DataTable(["key", "this run", "preset", "meaning"], changed, title)
            if changed
            else Text(f"All settings are those of the presets `{settings.size}` and `{settings.method}`.")
        )
    return [
        *tables,
        DataTable(["key", "value", "meaning"], [[key, value, described[key]] for key, value in values.items()], "All settings."),
    ]


def describe_fields(section: BaseModel, prefix: str = "") -> dict[str, str]:
    """Collect the description of every setting by dotted key."""
    sentences: dict[str, str] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            sentences |= describe_fields(value, f"{prefix}{name}.")
        else:
            sentences[f"{prefix}{name}"] = field.description or ""
    return sentences


def _describe_provenance(command: Mapping[str, Any]) -> list[Block]:
    if not command:
        return [
            Text("There is no `command.json`: the run was stopped before its first step, or its folder was copied incompletely.")
        ]
    kept = {key: value for key, value in command.items() if key not in ("settings", "format")}
    return [
        DataTable(
            ["what", "value"],
            [[key, value] for key, value in flatten_values(kept).items()],
            "From `command.json`, next to this page.",
        )
    ]
