"""The report of an outcome: does the image predict it, does it improve on the clinical columns, and how certain is that?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagman.evaluation.results import Measurement, Results, Summary
from dagman.evaluation.statistics import LEAST_IN_GROUP
from dagman.records.counts import count_noun
from dagman.records.files import write_text
from dagman.reports.figures.curves import Series, draw_curves
from dagman.reports.figures.encoding import encode_png
from dagman.reports.figures.intervals import draw_intervals
from dagman.reports.figures.survival import draw_survival_calibration, draw_survival_groups
from dagman.reports.methods import TITLE, quote_results
from dagman.reports.names import format_interval, format_p, name_measure, name_method, state_kinds
from dagman.reports.page import Block, DataTable, Figure, FigureGrid, Section, Text, render_page
from dagman.reports.provenance import tabulate_settings
from dagman.reports.style import FULL_WIDTH
from dagman.reports.tasks.basis import state_folds
from dagman.reports.tasks.chance import judge_against_chance
from dagman.reports.tasks.classification import (
    add_warnings,
    describe_design,
    judge_models,
    list_explained,
    list_notes,
    show_confusions,
    show_curves,
    show_subsets,
    tabulate_measures,
)
from dagman.reports.tasks.differences import judge_differences, tabulate_differences
from dagman.reports.tasks.examples import show_examples
from dagman.reports.viewer.examples import exhibit_items, write_viewer

_MEASURES = ("harrell_c", "uno_c", "dynamic_auc", "integrated_brier")
_ALL = "100%"
_WIDE = 0.1
"""Half width of the interval of Harrell's C above which the report comments on it."""
_FOOTER = "Made by `dagman outcome`. This page needs no network connection."


def write_outcome_report(results: Results) -> Path:
    """Write `report.html` to the folder of results and return its path."""
    path = results.path / "report.html"
    write_viewer(path, f"Examples of {results.path.resolve().name}", exhibit_items(results))
    render = render_response if results.summary.task == "response" else render_outcome
    write_text(path, render(results))
    return path


def render_response(results: Results) -> str:
    """Render the report of a response as HTML."""
    summary = results.summary
    sections = [
        Section("Summary", add_warnings(judge_models(results), summary)),
        Section("Measures", tabulate_measures(summary)),
        Section("Paired differences", tabulate_differences(summary.comparisons, "On the same patients and bootstrap resamples.")),
        Section("ROC and reliability", show_curves(results)),
        Section("Confusion", show_confusions(results)),
        Section("Fewer labels", show_subsets(results)),
        Section("Most and least certain predictions", show_examples(results)),
        Section("Notes", list_notes(summary)),
        Section(TITLE, quote_results(results)),
        Section("Settings", tabulate_settings(results)),
    ]
    lead = describe_design(results)
    return render_page(f"Response: {results.path.resolve().name}", lead, sections, footer=_FOOTER)


def render_outcome(results: Results) -> str:
    """Render the report of time and event as HTML."""
    summary = results.summary
    extra = summary.extra
    splits = results.splits
    repeats, folds = splits["repeat"].nunique(), splits["fold"].nunique()
    design = f"{folds} folds by patient, {repeats} time{'s' if repeats > 1 else ''}" if folds > 1 else "the table's own split"
    # The unit of time is not recorded; the name of the column may contain it.
    column = results.columns.get("time")
    clock = f"time (column {column})" if column and column != "time" else "time, in the table's unit"
    lead = (
        f"Time and event of {extra['patients']} patients, {extra['events']} of them with the event{_state_pairs(extra)}; {design}. "
        "All results are on held-out patients, with 95 % confidence intervals over patients."
    )
    basis = f"n = {count_noun(extra['patients'], 'patient')}, {count_noun(extra['events'], 'event')}; {state_folds(results)}."
    differences = judge_differences(summary.comparisons) if summary.comparisons else []
    sections = [
        Section("Summary", add_warnings([*_judge(results), *differences, *_state_events(summary)], summary)),
        Section("Discrimination", [*_draw_concordance(summary.measurements, basis), *_tabulate(summary.measurements)]),
        Section("Paired differences", tabulate_differences(summary.comparisons, "On the same patients and bootstrap resamples.")),
        Section("Risk groups", _show_groups(extra["predicted"], clock, basis)),
        Section("Time-dependent AUC", _show_areas(extra["predicted"], clock, basis)),
        Section("Calibration", _show_calibration(extra["predicted"], clock, basis)),
        Section("Fewer labels", _show_subsets(summary.measurements)),
        Section("Patients with high, intermediate and low risk", show_examples(results)),
        Section("Notes", list_notes(summary)),
        Section(TITLE, quote_results(results)),
        Section("Settings", tabulate_settings(results)),
    ]
    return render_page(f"Outcome: {results.path.resolve().name}", lead, sections, footer=_FOOTER)


def _state_pairs(extra: dict[str, Any]) -> str:
    """State the number of comparable pairs; empty for older results, in which pairs were not counted."""
    return f" and {count_noun(extra['pairs'], 'comparable pair')} in each repeat" if "pairs" in extra else ""


def _judge(results: Results) -> list[Block]:
    """Judge for each model and method whether the confidence interval of Harrell's C excludes chance."""
    shown = [row for row in results.summary.measurements if row.name == "harrell_c" and row.subset == _ALL]
    return [judge_against_chance(row, results, chance=0.5, called="chance (0.5)") for row in shown]


def _state_events(summary: Summary) -> list[Block]:
    """State how wide the intervals of Harrell's C are; empty if they are narrow."""
    reach = [(row.interval.high - row.interval.low) / 2 for row in summary.measurements if row.name == "harrell_c"]
    widest = max((value for value in reach if value == value), default=0.0)
    if widest < _WIDE:
        return []
    events = count_noun(summary.extra["events"], "event")
    return [
        Text(
            f"With {events}, the intervals of Harrell's C-index extend up to {widest:.2f} to each side: small effects are not seen."
        )
    ]


def _draw_concordance(measurements: Sequence[Measurement], basis: str) -> list[Block]:
    rows = [row for row in measurements if row.subset == _ALL and row.name in ("harrell_c", "uno_c")]
    figures = []
    for name in ("harrell_c", "uno_c"):
        of_name = [row for row in rows if row.name == name]
        series: dict[str, dict[str, tuple[float, float, float]]] = {}
        for row in of_name:
            values = (row.interval.value, row.interval.low, row.interval.high)
            series.setdefault(name_method(row.method), {})[row.model] = values
        labels = list(dict.fromkeys(row.model for row in of_name))
        if labels:
            drawn = draw_intervals(labels, series, x=name_measure(name), reference=0.5, title=name_measure(name))
            caption = (
                "0.5 is chance. Pairs are compared only within a fold, as the risks of different folds are not on the same scale. "
            )
            caption += basis
            figures.append(Figure(encode_png(drawn), caption, f"{name_measure(name)} of each model with its interval"))
    return [FigureGrid(figures)] if figures else []


def _tabulate(measurements: Sequence[Measurement]) -> list[Block]:
    rows = [row for row in measurements if row.subset == _ALL]
    names = [name for name in _MEASURES if any(row.name == name for row in rows)]
    keys = list(dict.fromkeys((row.model, row.method) for row in rows))
    held = {(row.model, row.method, row.name): row for row in rows}
    cells = [
        [
            model,
            name_method(method),
            *(_state(held[model, method, name]) if (model, method, name) in held else None for name in names),
        ]
        for model, method in keys
    ]
    how = state_kinds(rows)
    notes = (
        "Harrell's and Uno's C and the AUC: 0.5 is chance, 1 is perfect. Integrated Brier score: 0 is perfect; a useful model "
        f"must be below the Kaplan-Meier estimate, which uses no features. Intervals: {how}."
    )
    return [DataTable(["model", "method", *(name_measure(name) for name in names)], cells), Text(notes), *list_explained(rows)]


def _show_groups(predicted: Sequence[dict[str, Any]], clock: str, basis: str) -> list[Block]:
    figures = []
    alike = [_title(arm) for arm in predicted if len(arm["groups"]["groups"]) < 2]
    for arm in predicted:
        groups = arm["groups"]
        if len(groups["groups"]) < 2:
            continue
        many = [p for p in groups["p_all"] if p is not None]
        p = "undefined" if groups["p"] is None else format_p(groups["p"])
        over = f"; over {len(many)} repeats p is {format_p(min(many))} to {format_p(max(many))}" if len(many) > 1 else ""
        drawn = draw_survival_groups(groups, title=_title(arm), x=clock)
        figures.append(
            Figure(
                encode_png(drawn), f"**Log-rank p {p}**{over}. {basis}", f"Kaplan-Meier curves of two risk groups of {_title(arm)}"
            )
        )
    text = (
        "Patients above and below the median risk of the training patients, so the threshold is set on the training fold. The "
        "first repeat is shown, with pointwise 95 % confidence bands; ticks are censored patients. The log-rank test assumes "
        "independent patients, which does not quite hold in cross-validation, so p is only a guide."
    )
    equal: list[Block] = []
    if alike:
        equal.append(Text(f"All risks are equal, so nobody is above the threshold: {'; '.join(alike)}. All coefficients are zero."))
    return [Text(text), FigureGrid(figures), *equal] if figures else equal


def _show_areas(predicted: Sequence[dict[str, Any]], clock: str, basis: str) -> list[Block]:
    lines = {_title(arm): Series(arm["auc"]["times"], arm["auc"]["auc"]) for arm in predicted if arm["auc"]}
    if not lines:
        return [Text("There are too few events for time-dependent measures.")]
    drawn = draw_curves(lines, x=clock, y="AUC", references={"chance": 0.5}, width=FULL_WIDTH)
    return [
        Figure(
            encode_png(drawn),
            f"Patients with the event by each time against those without it yet (cumulative/dynamic). {basis}",
            "AUC over time",
        )
    ]


def _show_calibration(predicted: Sequence[dict[str, Any]], clock: str, basis: str) -> list[Block]:
    figures = []
    for arm in predicted:
        if arm["calibration"]:
            drawn = draw_survival_calibration(arm["calibration"], title=_title(arm), x=clock)
            figures.append(Figure(encode_png(drawn), basis, f"Calibration of {_title(arm)}"))
    text = (
        "Groups of patients by predicted survival, against their Kaplan-Meier estimates with 95 % confidence intervals; the "
        "dotted line is perfect calibration."
    )
    few = f"No calibration curve is drawn: it needs two groups of {LEAST_IN_GROUP} patients, and a time to evaluate them."
    return [Text(text), FigureGrid(figures)] if figures else [Text(few)]


def _show_subsets(measurements: Sequence[Measurement]) -> list[Block]:
    rows = [row for row in measurements if row.name == "harrell_c"]
    subsets = list(dict.fromkeys(row.subset for row in rows))
    if subsets in ([], [_ALL]):
        return []
    keys = list(dict.fromkeys((row.model, row.method) for row in rows))
    held = {(row.model, row.method, row.subset): row for row in rows}
    cells = [
        [
            model,
            name_method(method),
            *(_state(held[model, method, s]) if (model, method, s) in held else None for s in subsets),
        ]
        for model, method in keys
    ]
    return [DataTable(["model", "method", *subsets], cells, "Harrell's C-index against the number of labels.")]


def _title(arm: dict[str, Any]) -> str:
    return f"{arm['model']}, {name_method(arm['method'])}"


def _state(row: Measurement) -> str:
    return format_interval(row.interval.value, row.interval.low, row.interval.high)
