"""The report of a classification: accuracy with uncertainty, label efficiency, and the most and least certain predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagman.evaluation.measures import find_chance
from dagman.evaluation.results import Measurement, Results, Summary
from dagman.evaluation.statistics import LEAST_IN_GROUP
from dagman.records.files import write_text
from dagman.reports.figures.classification import (
    draw_confusion,
    draw_label_curve,
    draw_reliability,
    draw_roc,
)
from dagman.reports.figures.encoding import encode_png
from dagman.reports.methods import TITLE, quote_results
from dagman.reports.names import explain_intervals, format_interval, name_measure, name_method, state_kinds
from dagman.reports.page import Block, DataTable, Figure, FigureGrid, Listing, Section, Text, Verdict, render_page
from dagman.reports.provenance import tabulate_settings
from dagman.reports.style import FULL_WIDTH
from dagman.reports.tasks.basis import state_basis
from dagman.reports.tasks.chance import judge_against_chance
from dagman.reports.tasks.examples import show_examples
from dagman.reports.viewer.examples import exhibit_items, write_viewer

_LONG = 240
"""Maximum number of characters of a warning at the top of the page."""


def write_classification_report(results: Results) -> Path:
    """Write `report.html` to the folder of results and return its path."""
    path = results.path / "report.html"
    write_viewer(path, f"Examples of {results.path.resolve().name}", exhibit_items(results))
    write_text(path, render_classification(results))
    return path


def render_classification(results: Results) -> str:
    """Render the report as HTML."""
    summary = results.summary
    sections = [
        Section("Summary", add_warnings(judge_models(results), summary)),
        Section("Measures", tabulate_measures(summary)),
        Section("ROC and reliability", show_curves(results)),
        Section("Confusion", show_confusions(results)),
        Section("Fewer labels", show_subsets(results)),
        Section("Most and least certain predictions", show_examples(results)),
        Section("Notes", list_notes(summary)),
        Section(TITLE, quote_results(results)),
        Section("Settings", tabulate_settings(results)),
    ]
    footer = "Made by `dagman classify`. This page needs no network connection."
    return render_page(f"Classification: {results.path.resolve().name}", describe_design(results), sections, footer=footer)


def describe_design(results: Results) -> str:
    """Describe items, patients, classes and splits in one paragraph."""
    extra, splits = results.summary.extra, results.splits
    counts = ", ".join(f"{count} `{name}`" for name, count in extra["counts"].items())
    folds, repeats = splits["fold"].nunique(), splits["repeat"].nunique()
    column = results.columns.get("label")
    label = f"`{column}`: " if column else ""
    design = f"{folds} folds by patient, {repeats} time{'s' if repeats > 1 else ''}" if folds > 1 else "the table's own split"
    return (
        f"{sum(extra['counts'].values())} items ({label}{counts}) of {extra['patients']} patients; {design}. All results are "
        f"on held-out patients, averaged over repeats, with 95 % confidence intervals over patients."
    )


def add_warnings(findings: Sequence[Block], summary: Summary) -> list[Block]:
    """Insert the warnings directly below the verdicts, as they limit how far the verdicts can be trusted."""
    last = max((number for number, block in enumerate(findings, start=1) if isinstance(block, Verdict)), default=0)
    return [*findings[:last], *show_warnings(summary), *findings[last:]]


def show_warnings(summary: Summary) -> list[Block]:
    """Show the notes that question the validity of the results; long ones are truncated, and given in full under Notes."""
    return [Verdict("warn", _shorten(note.text)) for note in summary.notes if note.kind == "warning"]


def list_notes(summary: Summary) -> list[Block]:
    """List all notes; empty if there are none."""
    return [Listing([note.text for note in summary.notes])] if summary.notes else []


def judge_models(results: Results) -> list[Block]:
    """Judge whether the AUC of each model and method, trained on all labels, exceeds chance; point out the baselines."""
    summary = results.summary
    shown = list_measurements(summary, name="auc", subset=find_last_subset(summary))
    blocks: list[Block] = [judge_against_chance(row, results, chance=0.5, called="chance (0.5)") for row in shown]
    fresh = summary.extra.get("fresh", [])
    for name in fresh:
        blocks.append(Text(f"`{name}` is not pretrained, and serves as the baseline for pretraining."))
    if summary.extra.get("sized") and not any(m.model == "radiomics:size" for m in summary.measurements):
        command = "dagman compare classify MODEL radiomics:size TABLE"
        blocks.append(Text(f"Size alone may predict as well: compare on the same splits by `{command}`."))
    return blocks


def tabulate_measures(summary: Summary, subset: str | None = None) -> list[Block]:
    """Tabulate all measures of each model and method for a subset of labels; None for all labels."""
    rows = list_measurements(summary, subset=subset or find_last_subset(summary))
    names = list(dict.fromkeys(row.name for row in rows))
    keys = list(dict.fromkeys((row.model, row.method) for row in rows))
    held = {(row.model, row.method, row.name): row for row in rows}
    cells = [
        [
            model,
            name_method(method),
            *(state_interval(held[model, method, n]) if (model, method, n) in held else None for n in names),
        ]
        for model, method in keys
    ]
    how = state_kinds(rows)
    several = " With several classes, AUC is the one-vs-rest average." if len(summary.classes) > 2 else ""
    text = f"AUC: 0.5 is chance, 1 is perfect. Brier score: 0 is perfect.{several} Intervals: {how}."
    return [DataTable(["model", "method", *(name_measure(name) for name in names)], cells), Text(text), *list_explained(rows)]


def show_curves(results: Results) -> list[Block]:
    """Show the ROC curves with confidence bands and the reliability diagram; only for two classes."""
    summary = results.summary
    curves = [curve for curve in summary.extra["curves"] if "roc" in curve]
    if not curves:
        return []
    roc = draw_roc({_name(curve): curve["roc"] for curve in curves})
    positive, basis = summary.classes[1], state_basis(results)
    figures = [
        Figure(
            encode_png(roc),
            f"For `{positive}`. Mean of the folds' curves, with a pointwise 95 % confidence band over patients. Dotted: "
            f"chance. {basis}",
            "ROC curves",
        )
    ]
    reliabilities = {_name(curve): curve["reliability"] for curve in curves if "reliability" in curve}
    if not reliabilities:
        return [
            FigureGrid(figures),
            Text(f"No reliability curve is drawn, as it needs at least two bins of {LEAST_IN_GROUP} items."),
        ]
    bins = max(len(curve["counts"]) for curve in reliabilities.values())
    text = (
        f"Up to {bins} bins of equal numbers of items by the predicted probability of `{positive}`; the dotted line is perfect "
        f"calibration. In parentheses: the expected calibration error."
    )
    figures.append(Figure(encode_png(draw_reliability(reliabilities)), text, "Predicted probability against observed frequency"))
    return [FigureGrid(figures)]


def show_confusions(results: Results) -> list[Block]:
    """Show the confusion matrix of each model and method."""
    summary, basis = results.summary, state_basis(results)
    figures = [
        Figure(
            encode_png(draw_confusion(curve["confusion"], summary.classes, _name(curve))),
            f"Number of items, and percentage of the row; the predicted class has the highest score averaged over repeats. {basis}",
            f"Confusion matrix of {_name(curve)}",
        )
        for curve in summary.extra["curves"]
    ]
    return [FigureGrid(figures)] if figures else []


def show_subsets(results: Results) -> list[Block]:
    """Plot AUC and balanced accuracy against the number of training labels; empty if there is only one subset."""
    summary = results.summary
    subsets = list(dict.fromkeys(row.subset for row in summary.measurements))
    if len(subsets) < 2:
        return []
    blocks: list[Block] = []
    for name in ("auc", "balanced_accuracy"):
        series: dict[str, dict[str, tuple[float, float, float]]] = {}
        for row in summary.measurements:
            if row.name == name:
                values = (row.interval.value, row.interval.low, row.interval.high)
                series.setdefault(f"{row.model}, {name_method(row.method)}", {})[row.subset] = values
        drawn = draw_label_curve(
            subsets, series, y=name_measure(name), reference=find_chance(name, len(summary.classes)), width=FULL_WIDTH
        )
        caption = (
            "k: labelled patients per class. Larger subsets contain the smaller ones. Bars: 95 % confidence intervals; dotted: "
            "chance. "
            f"{state_basis(results)}"
        )
        blocks.append(Figure(encode_png(drawn), caption, f"{name_measure(name)} against labels"))
    return blocks


def list_explained(rows: Sequence[Measurement]) -> list[Block]:
    """Explain intervals that are exact, missing, or from few pairs; empty if all are plain bootstrap intervals."""
    sentences = explain_intervals(rows)
    return [Listing(sentences)] if sentences else []


def list_measurements(summary: Summary, **wanted: str) -> list[Measurement]:
    """List the measurements whose fields have the given values."""
    return [row for row in summary.measurements if all(getattr(row, key) == value for key, value in wanted.items())]


def find_last_subset(summary: Summary) -> str:
    """Return the largest subset of labels; measurements are ordered from the smallest to the largest."""
    return summary.measurements[-1].subset


def state_interval(row: Measurement) -> str:
    """Format a measurement with its interval."""
    return format_interval(row.interval.value, row.interval.low, row.interval.high)


def _shorten(note: str) -> str:
    # Older results use a different wording after "so results may be", so it is not matched.
    seen, so, rest = note.partition(", so results may be ")
    result, colon, names = rest.partition(": ")
    remark = f"{seen}{so}{result}"
    if colon and ", " in names:
        return f"{remark}{colon}{names.partition(', ')[0]} and {names.count(', ')} more (listed under Notes)"
    if len(note) <= _LONG:
        return note
    start = note[:_LONG].rpartition(", ")[0] or note[:_LONG]
    return f"{start}, ... (all listed under Notes)"


def _name(curve: dict[str, Any]) -> str:
    return f"{curve['model']}, {name_method(curve['method'])}"
