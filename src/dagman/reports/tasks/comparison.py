"""The report of a comparison of several models on one task: intervals, paired differences and label efficiency."""

from __future__ import annotations

from pathlib import Path

from dagman.evaluation.measures import find_chance
from dagman.evaluation.results import Results, Summary
from dagman.evaluation.statistics import Interval
from dagman.records.files import write_text
from dagman.reports.figures.classification import draw_label_curve
from dagman.reports.figures.encoding import encode_png
from dagman.reports.figures.intervals import draw_intervals
from dagman.reports.methods import TITLE, quote_results
from dagman.reports.names import format_interval, name_measure, name_method, state_kinds
from dagman.reports.page import Block, DataTable, Figure, FigureGrid, Section, render_page
from dagman.reports.provenance import tabulate_settings
from dagman.reports.style import FULL_WIDTH
from dagman.reports.tasks.classification import add_warnings, list_explained, list_notes
from dagman.reports.tasks.differences import judge_differences, tabulate_differences

_FIGURES = 4
_COLUMNS = 4
"""Largest number of models that fit side by side as columns."""


def write_comparison_report(results: Results) -> Path:
    """Write `report.html` to the folder of results and return its path."""
    path = results.path / "report.html"
    write_text(path, render_comparison(results))
    return path


def render_comparison(results: Results) -> str:
    """Render the report of any task as HTML."""
    summary = results.summary
    models = list(dict.fromkeys(row.model for row in summary.measurements))
    lead = (
        f"Task `{summary.task}` for {len(models)} models ({', '.join(f'`{name}`' for name in models)}), on the same items, crops, "
        "splits and few-shot draws. Intervals are 95 %, over patients."
    )
    sections = [
        Section("Summary", add_warnings(judge_differences(summary.comparisons), summary)),
        Section("All measures", tabulate_models(summary)),
        Section("Comparison", _draw_models(summary)),
        Section("Performance against number of labels", _draw_labels(summary)),
        Section("Paired differences", tabulate_differences(summary.comparisons)),
        Section("Notes", list_notes(summary)),
        Section(TITLE, quote_results(results)),
        Section("Settings", tabulate_settings(results)),
    ]
    footer = "Made by `dagman compare`. This page needs no network connection."
    return render_page(f"Comparison: {results.path.resolve().name}", lead, sections, footer=footer)


def tabulate_models(summary: Summary) -> list[Block]:
    """Tabulate all measurements, with a row per method, subset and measure, and a column per model.

    If there are more models than columns fit on a page, models are in rows and measures in columns.
    """
    models = list(dict.fromkeys(row.model for row in summary.measurements))
    keys = list(dict.fromkeys((row.method, row.subset, row.name) for row in summary.measurements))
    held = {(row.method, row.subset, row.name, row.model): row.interval for row in summary.measurements}
    rows = [
        [name_method(method), subset, name_measure(name), *(_state(held.get((method, subset, name, model))) for model in models)]
        for method, subset, name in keys
    ]
    how = state_kinds(summary.measurements)
    if len(models) > _COLUMNS:
        measures = list(dict.fromkeys(name for *_, name in keys))
        arms = list(dict.fromkeys((row.method, row.subset, row.model) for row in summary.measurements))
        rows = [
            [name_method(method), subset, model, *(_state(held.get((method, subset, name, model))) for name in measures)]
            for method, subset, model in arms
        ]
        return [
            DataTable(
                ["method", "labels", "model", *map(name_measure, measures)], rows, f"Value (95 % confidence interval). {how}."
            ),
            *list_explained(summary.measurements),
        ]
    return [
        DataTable(["method", "labels", "measure", *models], rows, f"Value (95 % confidence interval). {how}."),
        *list_explained(summary.measurements),
    ]


def _draw_models(summary: Summary) -> list[Block]:
    largest = summary.measurements[-1].subset if summary.measurements else ""
    figures = []
    for name in _list_shown(summary):
        rows = [row for row in summary.measurements if row.name == name and row.subset == largest]
        series: dict[str, dict[str, tuple[float, float, float]]] = {}
        for row in rows:
            series.setdefault(name_method(row.method), {})[row.model] = _triple(row.interval)
        models = list(dict.fromkeys(row.model for row in rows))
        if models:
            drawn = draw_intervals(
                models, series, x=name_measure(name), reference=find_chance(name, len(summary.classes)), title=name_measure(name)
            )
            figures.append(Figure(encode_png(drawn), f"{largest} of the labels.", f"{name_measure(name)} of each model"))
    return [FigureGrid(figures)] if figures else []


def _draw_labels(summary: Summary) -> list[Block]:
    subsets = list(dict.fromkeys(row.subset for row in summary.measurements))
    if len(subsets) < 2:
        return []
    blocks: list[Block] = []
    for method in dict.fromkeys(row.method for row in summary.measurements):
        for name in _list_shown(summary):
            series: dict[str, dict[str, tuple[float, float, float]]] = {}
            for row in summary.measurements:
                if (row.name, row.method) == (name, method):
                    series.setdefault(row.model, {})[row.subset] = _triple(row.interval)
            if series:
                title = name_method(method)
                drawn = draw_label_curve(
                    subsets,
                    series,
                    y=name_measure(name),
                    reference=find_chance(name, len(summary.classes)),
                    title=title,
                    width=FULL_WIDTH,
                )
                caption = "Larger subsets contain the smaller ones; all models use the same. Bars: 95 % confidence intervals."
                blocks.append(Figure(encode_png(drawn), caption, f"{name_measure(name)} against labels, {title}"))
    return blocks


def _list_shown(summary: Summary) -> list[str]:
    """List the measures to draw: those that were compared, otherwise the first ones."""
    compared = list(dict.fromkeys(row.name for row in summary.comparisons))
    return (compared or list(dict.fromkeys(row.name for row in summary.measurements)))[:_FIGURES]


def _triple(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _state(interval: Interval | None) -> str | None:
    return None if interval is None else format_interval(*_triple(interval))
