"""The report of a regression: agreement of predicted with true numbers, uncertainty, and label efficiency."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dagman.evaluation.results import Results, Summary
from dagman.records.counts import count_noun
from dagman.records.files import write_text
from dagman.reports.figures.agreement import draw_against_truth, draw_residuals
from dagman.reports.figures.classification import draw_label_curve
from dagman.reports.figures.encoding import encode_png
from dagman.reports.methods import TITLE, quote_results
from dagman.reports.names import name_measure, name_method, state_kinds
from dagman.reports.page import Block, DataTable, Figure, FigureGrid, Section, Text, render_page
from dagman.reports.provenance import tabulate_settings
from dagman.reports.style import FULL_WIDTH
from dagman.reports.tasks.basis import state_basis, state_folds
from dagman.reports.tasks.chance import judge_against_chance
from dagman.reports.tasks.classification import (
    add_warnings,
    find_last_subset,
    list_explained,
    list_measurements,
    list_notes,
    state_interval,
)
from dagman.reports.tasks.examples import show_examples
from dagman.reports.viewer.examples import exhibit_items, write_viewer

_SHOWN = ("r2", "mae")
"""Measures that are plotted against the number of training labels."""


def write_regression_report(results: Results) -> Path:
    """Write `report.html` to the folder of results and return its path."""
    path = results.path / "report.html"
    write_viewer(path, f"Examples of {results.path.resolve().name}", exhibit_items(results))
    write_text(path, render_regression(results))
    return path


def render_regression(results: Results) -> str:
    """Render the report as HTML."""
    summary = results.summary
    sections = [
        Section("Summary", add_warnings(_judge(results), summary)),
        Section("Measures", _tabulate(summary)),
        Section("Predicted against true", _draw_items(results)),
        Section("Best, median and worst", show_examples(results, "by the error of their mean prediction")),
        Section("Fewer labels", _draw_subsets(results)),
        Section("Notes", list_notes(summary)),
        Section(TITLE, quote_results(results)),
        Section("Settings", tabulate_settings(results)),
    ]
    extra, rows = summary.extra, results.predictions
    low, high = extra["range"]
    lead = (
        f"`{extra['label']}` of {count_noun(int(rows['item'].nunique()), 'item')} of {count_noun(extra['patients'], 'patient')}: "
        f"{low:g} to {high:g}, mean {extra['mean']:.3g}, standard deviation {extra['deviation']:.3g}; {state_folds(results)}. "
        "All results are on held-out patients, averaged over repeats, with 95 % confidence intervals over patients."
    )
    footer = "Made by `dagman regress`. This page needs no network connection."
    return render_page(f"Regression: {results.path.resolve().name}", lead, sections, footer=footer)


def _judge(results: Results) -> list[Block]:
    """Judge for each model and method, trained on all labels, whether it predicts better than the mean of the training set."""
    summary = results.summary
    shown = list_measurements(summary, name="r2", subset=find_last_subset(summary))
    blocks: list[Block] = [judge_against_chance(row, results, chance=0.0, called="the mean (R² of 0)") for row in shown]
    blocks += [Text(f"`{name}` is not pretrained, and serves as the baseline for pretraining.") for name in summary.extra["fresh"]]
    return blocks


def _tabulate(summary: Summary) -> list[Block]:
    rows = list_measurements(summary, subset=find_last_subset(summary))
    names = list(dict.fromkeys(row.name for row in rows))
    held = {(row.model, row.method, row.name): row for row in rows}
    cells = [
        [model, name_method(method), *(state_interval(held[model, method, name]) for name in names)]
        for model, method in dict.fromkeys((row.model, row.method) for row in rows)
    ]
    text = (
        "R²: 1 is perfect, 0 is as good as predicting the mean, below 0 is worse. Errors are in the unit of "
        f"`{summary.extra['label']}`, whose standard deviation is {summary.extra['deviation']:.3g}. Intervals: {state_kinds(rows)}."
    )
    return [DataTable(["model", "method", *map(name_measure, names)], cells), Text(text), *list_explained(rows)]


def _draw_items(results: Results) -> list[Block]:
    """Plot predicted against true numbers and residuals; each item appears once, averaged over repeats."""
    summary, rows = results.summary, results.predictions
    rows = rows[rows["subset"] == find_last_subset(summary)].assign(label=lambda frame: frame["label"].astype(float))
    unit, basis = summary.extra["label"], state_basis(results)
    figures = []
    for (model, method), part in rows.groupby(["model", "method"], sort=False):
        means = part.groupby("item")[["label", "predicted"]].mean()
        truth, predicted = (means[name].to_numpy(dtype=np.float64) for name in ("label", "predicted"))
        who = f"{model}, {name_method(str(method))}"
        figures += [
            Figure(
                encode_png(draw_against_truth(truth, predicted, unit=unit, mean=summary.extra["mean"], title=who)),
                f"Dotted line: perfect agreement; dashed line: the overall mean. Predictions are averaged over repeats. {basis}",
                f"Predicted against true numbers of {who}",
            ),
            Figure(
                encode_png(draw_residuals(truth, predicted, unit=unit, title="Residuals")),
                f"A funnel shape or a slope indicates a systematic error. {basis}",
                f"Residuals of {who}",
            ),
        ]
    return [FigureGrid(figures)]


def _draw_subsets(results: Results) -> list[Block]:
    measurements = results.summary.measurements
    subsets = list(dict.fromkeys(row.subset for row in measurements))
    if len(subsets) < 2:
        return []
    blocks: list[Block] = []
    for name in _SHOWN:
        series: dict[str, dict[str, tuple[float, float, float]]] = {}
        for row in list_measurements(results.summary, name=name):
            values = (row.interval.value, row.interval.low, row.interval.high)
            series.setdefault(f"{row.model}, {name_method(row.method)}", {})[row.subset] = values
        drawn = draw_label_curve(subsets, series, y=name_measure(name), reference=0.0 if name == "r2" else None, width=FULL_WIDTH)
        caption = (
            f"k: labelled patients. Larger subsets contain smaller ones. Bars: 95 % confidence intervals. {state_basis(results)}"
        )
        blocks.append(Figure(encode_png(drawn), caption, f"{name_measure(name)} against labels"))
    return blocks
