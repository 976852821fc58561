"""The report of a clustering: an interactive map, and how well structures of the same kind group together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dagman.evaluation.measures import MEASURES
from dagman.evaluation.results import Measurement, Results, Summary
from dagman.records.counts import count_noun
from dagman.records.files import write_text
from dagman.reports.figures.encoding import encode_png
from dagman.reports.figures.scatter import draw_scatter
from dagman.reports.hover_map import MapPoint, TileSheet, render_hover_map
from dagman.reports.methods import TITLE, quote_results
from dagman.reports.names import format_interval, name_measure, state_kinds
from dagman.reports.page import Block, DataTable, Embedded, Figure, FigureGrid, Level, Listing, Section, Text, Verdict, render_page
from dagman.reports.provenance import tabulate_settings
from dagman.reports.tasks.classification import add_warnings, list_explained, list_notes
from dagman.reports.tasks.differences import tabulate_differences
from dagman.reports.tasks.examples import show_examples
from dagman.reports.viewer.examples import exhibit_items, write_viewer
from dagman.tasks.cluster.clustering import SHEET

_MAPS = {"umap": "UMAP", "pca": "principal components"}
_WHERE = {"features": "feature space", "kmeans": "k-means", "hdbscan": "HDBSCAN", "umap": "UMAP map", "pca": "PCA map"}


def write_clustering_report(results: Results) -> Path:
    """Write `report.html` to the folder of results and return its path."""
    path = results.path / "report.html"
    write_viewer(path, f"Examples of {results.path.resolve().name}", exhibit_items(results))
    write_text(path, render_clustering(results))
    return path


def render_clustering(results: Results) -> str:
    """Render the report as HTML."""
    summary, rows = results.summary, results.predictions
    models = list(dict.fromkeys(rows["model"]))
    kinds = count_noun(len(summary.classes), "kind") if summary.classes else "no names given"
    lead = (
        f"{count_noun(len(rows) // len(models), 'structure')} of {count_noun(summary.extra['patients'], 'patient')}, {kinds}; "
        f"frozen features. Labels are used only for evaluation."
    )
    sections = [
        Section("Summary", add_warnings(_judge(summary), summary)),
        Section("The map", [block for number, model in enumerate(models) for block in _show_map(results, model, number)]),
        Section("Measures", _tabulate(summary, models)),
        Section("Paired differences", tabulate_differences(summary.comparisons, "On the same structures and bootstrap resamples.")),
        Section("Kinds and clusters", [block for model in models for block in _cross(rows[rows["model"] == model], model)]),
        Section("One of each cluster", show_examples(results, "the one nearest to the middle of each k-means cluster")),
        Section("Maps for print", [FigureGrid([f for model in models for f in _draw_maps(results, model)])]),
        Section("Notes", list_notes(summary)),
        Section(TITLE, quote_results(results)),
        Section("Settings", tabulate_settings(results)),
    ]
    footer = "Made by `dagman cluster`. This page needs no network connection."
    return render_page(f"Clusters: {results.path.resolve().name}", lead, sections, footer=footer)


def _judge(summary: Summary) -> list[Block]:
    """Judge for each model whether nearest neighbours from other patients are of the same kind more often than by chance.

    Chance is always predicting the most frequent kind.
    """
    counts = summary.extra["counts"]
    if not counts:
        return [Text("Without labels, the clusters cannot be evaluated: inspect the map.")]
    guess = max(counts.values()) / sum(counts.values())
    blocks: list[Block] = []
    for row in summary.measurements:
        if row.name == "neighbour_accuracy" and math.isfinite(row.interval.value):
            statement = f"the nearest structures of other patients are of the same kind for {_state(row)}"
            level: Level = "ok" if row.interval.low > guess else "warn"
            blocks.append(
                Verdict(level, f"`{row.model}`: {statement}; always predicting the most frequent kind gives {guess:.3f}.")
            )
    return blocks


def _show_map(results: Results, model: str, number: int) -> list[Block]:
    summary, rows = results.summary, results.predictions
    rows = rows[rows["model"] == model]
    kind = summary.extra["map"]
    tiles = {name: index for index, name in enumerate(summary.extra["tiles"]["names"])}
    classes, codes = _list_classes(rows, summary)
    points = [
        MapPoint(
            x=row[f"{kind}_x"],
            y=row[f"{kind}_y"],
            code=int(code),
            name=str(row["item"]),
            lines=tuple(_describe_point(row, summary)),
            tile=tiles.get(str(row["item"]), -1),
        )
        for (_, row), code in zip(rows.iterrows(), codes, strict=True)
    ]
    caption = (
        f"**{model}**, {_MAPS[kind]}. Hover over a point, or move to it with the Tab key, to see its crop: the axial slice "
        f"with most of the structure (outlined), windowed around the structure; the patient's left is on the right. Click a "
        f"kind's name to show it alone. Distances between distant groups are not meaningful on such a map."
    )
    if len(tiles) < len(points):
        caption += f" {count_noun(len(points) - len(tiles), 'point has', 'points have')} no image."
    return [Embedded(render_hover_map(points, classes, _load_sheet(results), name=f"map-{number}"), caption)]


def _describe_point(row: pd.Series, summary: Summary) -> list[str]:
    lines = [str(row["label"])] if summary.classes else []
    lines.append(f"patient {row['patient']}")
    dense = "alone" if row["hdbscan"] < 0 else f"cluster {row['hdbscan']}"
    lines.append(f"k-means cluster {row['kmeans']}, HDBSCAN {dense}")
    if "neighbours_right" in row and not row["neighbours_right"]:
        lines.append("its neighbours are of another kind")
    return lines


def _list_classes(rows: pd.DataFrame, summary: Summary) -> tuple[list[str], np.ndarray]:
    if summary.classes:
        code_of = {name: code for code, name in enumerate(summary.classes)}
        return list(summary.classes), np.array([code_of[label] for label in rows["label"]], dtype=np.int64)
    codes = rows["kmeans"].to_numpy(dtype=np.int64)
    return [f"cluster {code}" for code in range(int(codes.max()) + 1)], codes


def _load_sheet(results: Results) -> TileSheet | None:
    path, tiles = results.path / SHEET, results.summary.extra["tiles"]
    if not path.is_file() or not tiles["names"]:
        return None
    return TileSheet(png=path.read_bytes(), side=tiles["side"], columns=tiles["columns"])


def _tabulate(summary: Summary, models: Sequence[str]) -> list[Block]:
    held = {(row.name, row.method, row.model): row for row in summary.measurements}
    keys = sorted({(row.name, row.method) for row in summary.measurements}, key=lambda key: (list(MEASURES).index(key[0]), key[1]))
    rows = [
        [
            name_measure(name),
            _WHERE[method],
            *(_state(held[name, method, model]) if (name, method, model) in held else None for model in models),
        ]
        for name, method in keys
    ]
    clusters = [
        f"{model}: {count_noun(counts['kmeans'], 'cluster')} by k-means, {counts['hdbscan']} by HDBSCAN with "
        f"{count_noun(counts['alone'], 'structure')} left alone"
        for model, counts in summary.extra["found"].items()
    ]
    how = state_kinds(summary.measurements)
    text = (
        "1 is best for all measures except the distances; the adjusted Rand index of random clusters is 0. A small "
        "intra-cluster relative to inter-cluster distance is good, but only within one map, as units differ between maps."
        + ("" if how.startswith("no interval") else f" Intervals: {how}.")
    )
    return [DataTable(["measure", "where", *models], rows), Text(text), *list_explained(summary.measurements), Listing(clusters)]


def _cross(rows: pd.DataFrame, model: str) -> list[Block]:
    if rows["label"].isna().all():
        return []
    counts = pd.crosstab(rows["label"], rows["kmeans"])
    # Clusters are ordered by their most frequent kind, so that a good clustering appears as a diagonal.
    order = sorted(counts.columns, key=lambda cluster: (int(counts[cluster].to_numpy().argmax()), cluster))
    cells = [
        [label, *(int(value) or None for value in row)] for label, row in zip(counts.index, counts[order].to_numpy(), strict=True)
    ]
    columns = ["kind", *(str(cluster) for cluster in order)]
    return [DataTable(columns, cells, f"{model}: structures of each kind in each k-means cluster.")]


def _draw_maps(results: Results, model: str) -> list[Figure]:
    rows = results.predictions[results.predictions["model"] == model]
    classes, codes = _list_classes(rows, results.summary)
    figures = []
    for kind, name in _MAPS.items():
        if f"{kind}_x" in rows:
            points = rows[[f"{kind}_x", f"{kind}_y"]].to_numpy(dtype=np.float64)
            drawn = encode_png(draw_scatter(points, codes, classes, title=f"{model}, {name}"))
            figures.append(Figure(drawn, "", f"Map of structures by {name}"))
    return figures


def _state(row: Measurement) -> str:
    return format_interval(row.interval.value, row.interval.low, row.interval.high)
