"""The report of a segmentation: accuracy per structure, the best, median and worst scan, volumes, and label efficiency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dagman.evaluation.results import Measurement, Results
from dagman.evaluation.segmentation_scores import MEASURES
from dagman.records.counts import count_noun
from dagman.records.files import write_text
from dagman.reports.figures.agreement import draw_agreement
from dagman.reports.figures.encoding import encode_png
from dagman.reports.figures.intervals import draw_intervals
from dagman.reports.methods import TITLE, quote_results
from dagman.reports.names import name_measure
from dagman.reports.page import Block, DataTable, Figure, FigureGrid, Section, Text, render_page
from dagman.reports.provenance import tabulate_settings
from dagman.reports.style import FULL_WIDTH
from dagman.reports.tasks.basis import state_basis
from dagman.reports.tasks.classification import add_warnings, list_notes
from dagman.reports.tasks.differences import tabulate_differences
from dagman.reports.tasks.segmentation_examples import show_scans
from dagman.reports.tasks.segmentation_verdicts import format_measure, format_measurement, judge_structures
from dagman.reports.viewer.examples import exhibit_scans, link_viewer, write_viewer

_LISTED = 200
_ALIKE = {"volume_ml": "volume_bias_ml", "true_volume_ml": "volume_bias_ml"}
"""Columns that are formatted with the decimals of a measure."""
_FEWEST = 3
"""Fewest scans for a Bland-Altman plot; fewer do not show a spread."""


def write_segmentation_report(results: Results) -> Path:
    """Write `report.html` to the folder of results and return its path."""
    path = results.path / "report.html"
    write_viewer(path, f"Examples of {results.path.resolve().name}", exhibit_scans(results))
    write_text(path, render_segmentation(results))
    return path


def render_segmentation(results: Results) -> str:
    """Render the report as HTML."""
    summary, extra = results.summary, results.summary.extra
    shown = extra["shown"]
    rows = results.predictions
    rows = rows[(rows["model"] == shown["model"]) & (rows["subset"] == shown["subset"]) & (rows["draw"] == 0)]
    splits = results.splits
    folds, repeats = splits["fold"].nunique(), splits["repeat"].nunique()
    design = f"{folds} folds by patient, {repeats} time{'s' if repeats > 1 else ''}" if folds > 1 else "the given split"
    lead = (
        f"{', '.join(f'`{name}`' for name in summary.classes)} in {extra['scans']} scans of {extra['patients']} patients; "
        f"{design}. All results are on held-out whole scans, on the grids of the masks, with 95 % confidence intervals over "
        f"patients where there are enough."
    )
    judged = judge_structures(summary.measurements, rows, summary.classes, model=shown["model"], subset=shown["subset"])
    links = link_viewer(results.path / "report.html", exhibit_scans(results))
    sections = [
        Section("Summary", add_warnings(judged, summary)),
        Section("Accuracy", [*_tabulate(summary.measurements), *_draw_dice(results)]),
        Section("Paired differences", tabulate_differences(summary.comparisons, "On the same scans and bootstrap resamples.")),
        Section(
            "Best, median and worst scan",
            [*show_scans(results), *links],
        ),
        Section("Volumes", _show_volumes(rows, extra, state_basis(results, of="scan"))),
        Section("Fewer labels", _show_subsets(results)),
        Section("All test scans", _list_scans(rows)),
        Section("Notes", list_notes(summary)),
        Section(TITLE, quote_results(results)),
        Section("Settings", tabulate_settings(results)),
    ]
    return render_page(
        f"Segmentation: {results.path.resolve().name}",
        lead,
        sections,
        footer="Made by `dagman segment`. Not for diagnosis. This page needs no network connection.",
    )


def _tabulate(measurements: Sequence[Measurement]) -> list[Block]:
    held = {(m.model, m.subset, *_part_name(m.name)): m for m in measurements}
    keys = list(dict.fromkeys((model, subset, structure) for model, subset, _, structure in held))
    measured = [name for name in MEASURES if any(measure == name for _, _, measure, _ in held)]
    rows = [
        [model, subset, structure or "all", *(format_measurement(held[model, subset, name, structure]) for name in measured)]
        for model, subset, structure in keys
    ]
    hows = list(dict.fromkeys(m.interval.how for m in measurements))
    how = next((how for how in hows if "bootstrap" in how), hows[0] if hows else "")
    text = (
        "Dice and surface Dice: 0 is no overlap, 1 is perfect. HD95: 95th percentile of the distances between both surfaces in "
        "mm, median over scans. Lesions found: fraction of the reader's connected components that the prediction overlaps; "
        f"false positives are components that overlap none. 95 % intervals: {how.replace('no interval: ', 'none, ')}."
    )
    absent = [structure for *_, structure in keys if structure and not _is_scored(measurements, structure)]
    if absent:
        text += f" No test scan contains {', '.join(f'`{name}`' for name in dict.fromkeys(absent))}."
    columns = ["model", "labels", "structure", *map(name_measure, measured)]
    if not any(structure for *_, structure in keys):
        # With a single structure, the column would only take up space.
        columns, rows = [columns[0], columns[1], *columns[3:]], [[row[0], row[1], *row[3:]] for row in rows]
    return [DataTable(columns, rows), Text(text)]


def _is_scored(measurements: Sequence[Measurement], structure: str) -> bool:
    return any(m.name == f"dice:{structure}" and np.isfinite(m.interval.value) for m in measurements)


def _draw_dice(results: Results) -> list[Block]:
    measurements, classes = results.summary.measurements, results.summary.classes
    last = measurements[-1].subset if measurements else ""
    series: dict[str, dict[str, tuple[float, float, float]]] = {}
    for m in measurements:
        name, structure = _part_name(m.name)
        if name == "dice" and m.subset == last and (structure or len(classes) == 1):
            values = (m.interval.value, m.interval.low, m.interval.high)
            series.setdefault(m.model, {})[structure or classes[0]] = values
    scored = [name for name in classes if any(np.isfinite(held[name][0]) for held in series.values() if name in held)]
    if not scored or (len(series) == 1 and len(classes) == 1):
        return []
    drawn = draw_intervals(scored, series, limits=(0, 1), x="Dice", title="Dice of each structure", width=FULL_WIDTH)
    return [
        Figure(
            encode_png(drawn),
            f"Mean over scans with its interval, {last} of the labels. {state_basis(results, of='scan')}",
            "Dice of each structure",
        )
    ]


def _show_volumes(rows: pd.DataFrame, extra: dict[str, Any], basis: str) -> list[Block]:
    figures, few = [], []
    for name, limits in extra["agreement_ml"].items():
        means = rows[rows["label"] == name].groupby("item")[["volume_ml", "true_volume_ml"]].mean().dropna()
        if int((means["true_volume_ml"] > 0).sum()) < _FEWEST:
            few.append(f"`{name}`")
            continue
        known = tuple(float("nan") if limits[key] is None else float(limits[key]) for key in ("low", "bias", "high"))
        drawn = draw_agreement(
            means["volume_ml"].to_numpy(), means["true_volume_ml"].to_numpy(), (known[0], known[1], known[2]), title=name
        )
        figures.append(
            Figure(encode_png(drawn), f"n = {count_noun(len(means), 'scan')}.", f"Bland-Altman plot of the volume of {name}")
        )
    text = (
        "Bland-Altman plot: each point is a scan; about 95 % of differences lie between the dashed lines (limits of "
        "agreement), if they are normally distributed and independent of the volume. "
        f"{basis}"
    )
    shown: list[Block] = [Text(text), FigureGrid(figures)] if figures else []
    if few:
        shown.append(Text(f"Not drawn, as fewer than {_FEWEST} test scans contain it: {', '.join(few)}."))
    return shown


def _show_subsets(results: Results) -> list[Block]:
    held = [m for m in results.summary.measurements if m.name == "dice"]
    subsets = list(dict.fromkeys(m.subset for m in held))
    if len(subsets) < 2:
        return []
    series: dict[str, dict[str, tuple[float, float, float]]] = {}
    for m in held:
        series.setdefault(m.model, {})[m.subset] = (m.interval.value, m.interval.low, m.interval.high)
    drawn = draw_intervals(subsets, series, x="Dice", title="Dice by labels used in training", width=FULL_WIDTH)
    return [
        Figure(
            encode_png(drawn),
            f"Larger draws of patients contain the smaller ones. {state_basis(results, of='scan')}",
            "Dice by labels used in training",
        )
    ]


def _list_scans(rows: pd.DataFrame) -> list[Block]:
    columns = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "nsd": "surface Dice", "volume_ml": "ml", "true_volume_ml": "true ml"}
    means = rows.groupby(["item", "label"], sort=False)[list(columns)].mean().reset_index().sort_values("dice", kind="stable")
    shown = [
        [row.item, row.label, *(format_measure(_ALIKE.get(name, name), float(getattr(row, name))) for name in columns)]
        for row in means.head(_LISTED).itertuples()
    ]
    more = f" The worst {_LISTED} of {len(means)}; all are in `predictions.csv`." if len(means) > _LISTED else ""
    return [
        DataTable(
            ["scan", "structure", *columns.values()],
            shown,
            f"Worst first; ∞: missed entirely, or predicted where there is none.{more}",
        )
    ]


def _part_name(name: str) -> tuple[str, str]:
    """Split the name of a measurement into its measure and its structure ("" for all)."""
    measure, _, structure = name.partition(":")
    return measure, structure
