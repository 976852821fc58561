"""Figures of a classification: ROC curves, reliability diagram, confusion matrix, label efficiency, and single items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dagman.reports.figures.planes import (
    PLANES,
    Contour,
    add_color_bar,
    draw_plane,
    draw_scale_bar,
    hatch_beyond,
    overlay_relative,
)
from dagman.reports.figures.windows import choose_window
from dagman.reports.style import CYCLE, FULL_WIDTH, HALF_WIDTH, INK, MUTED, YELLOW, add_legend, new_figure, style_axes
from dagman.tasks.inputs.examples import Example

_SQUARE = 3.8


def draw_roc(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw ROC curves with pointwise confidence bands; each curve has the rates `false`, `true`, `low` and `high`."""
    figure = new_figure(HALF_WIDTH, _SQUARE)
    axes = figure.subplots()
    style_axes(axes, x="false positive rate (1 - specificity)", y="true positive rate (sensitivity)", title="ROC")
    axes.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1)
    for (name, curve), color in zip(curves.items(), CYCLE, strict=False):
        axes.fill_between(curve["false"], _numbers(curve["low"]), _numbers(curve["high"]), color=color, alpha=0.15, linewidth=0)
        axes.plot(curve["false"], _numbers(curve["true"]), color=color, linewidth=1.6, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    add_legend(figure, axes)
    return figure


def draw_reliability(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw a reliability diagram: observed frequency against predicted probability; the size of a dot is that of its bin."""
    figure = new_figure(HALF_WIDTH, _SQUARE)
    axes = figure.subplots()
    style_axes(axes, x="predicted probability", y="observed share", title="Reliability")
    axes.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1)
    for (name, curve), color in zip(curves.items(), CYCLE, strict=False):
        counts = np.asarray(curve["counts"], dtype=float)
        axes.plot(curve["predicted"], curve["observed"], color=color, linewidth=1.2, label=f"{name} (error {curve['error']:.2f})")
        axes.scatter(curve["predicted"], curve["observed"], s=120 * counts / counts.sum() + 8, color=color)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    add_legend(figure, axes)
    return figure


def draw_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix of counts and row percentages, shaded by percentage; true classes are in rows."""
    counts = np.asarray(matrix)
    side = max(2.4, 0.55 * len(classes) + 1.6)
    figure = new_figure(min(side + 0.8, FULL_WIDTH), min(side, FULL_WIDTH))
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.6 else INK
        axes.text(column, row, f"{count}\n{shares[row, column]:.0%}", ha="center", va="center", fontsize=8, color=color)
    style_axes(axes, x="predicted", y="true", title=title)
    axes.grid(False)
    axes.set_xticks(
        range(len(classes)), classes, rotation=45 if len(classes) > 4 else 0, ha="right" if len(classes) > 4 else "center"
    )
    axes.set_yticks(range(len(classes)), classes)
    return figure


def draw_label_curve(
    subsets: Sequence[str],
    series: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    y: str,
    reference: float | None = None,
    title: str = "",
    width: float = HALF_WIDTH,
) -> Figure:
    """Plot a measure against the number of training labels, one line per series (paper, Fig. 2 and 3).

    Args:
        subsets: Subsets of labels, from smallest to largest.
        series: (value, low, high) by name of the series and subset.
        y: Label of the y axis.
        reference: Value of a dotted line, such as chance.
        title: Title of the figure.
        width: Width in inches.
    """
    figure = new_figure(width, 3.2)
    axes = figure.subplots()
    style_axes(axes, x="labels used in training", y=y, title=title)
    count = len(series)
    for number, ((name, values), color) in enumerate(zip(series.items(), CYCLE * (count // len(CYCLE) + 1), strict=False)):
        # Shift series horizontally, so that their intervals do not overlap.
        shift = min(0.06, 0.6 / max(count, 1)) * (number - (count - 1) / 2)
        shown = [(index + shift, *values[subset]) for index, subset in enumerate(subsets) if subset in values]
        x, value, low, high = (np.array(part, dtype=float) for part in zip(*shown, strict=True))
        axes.vlines(x, low, high, color=color, linewidth=1.4)
        axes.plot(x, value, "o-", color=color, markersize=4.5, linewidth=1.2, label=name)
    if reference is not None:
        axes.axhline(reference, color=MUTED, linestyle=":", linewidth=1)
    axes.set_xticks(range(len(subsets)), subsets)
    axes.set_xlim(-0.5, len(subsets) - 0.5)
    if count > 1:
        add_legend(figure, axes)
    return figure


def draw_example(example: Example) -> Figure:
    """Draw three planes through the centre of an item's crop with its outline, and the attention below, if there is any."""
    attended = example.attention is not None
    figure = new_figure(HALF_WIDTH, 2.9 if attended else 1.6)
    panels = figure.subplots(2 if attended else 1, 3, squeeze=False)
    figure.set_layout_engine("constrained", hspace=0.0, h_pad=0.02)
    spacing = (example.spacing,) * 3
    window = choose_window(example.voxels, hounsfield=example.modality == "CT")
    outline = [] if example.inside.all() else [Contour(mask=example.inside, color=YELLOW, width=0.8)]
    for axes, plane in zip(panels[0], PLANES, strict=True):
        draw_plane(axes, example.voxels, spacing, plane, window=window, contours=outline)
        if example.within is not None:
            hatch_beyond(axes, example.voxels.shape, spacing, plane, example.within)
    draw_scale_bar(panels[0, 0], example.voxels.shape[0] * example.spacing)
    if example.attention is not None:
        overlay = overlay_relative(example.attention)
        for axes, plane in zip(panels[1], PLANES, strict=True):
            draw_plane(axes, example.voxels, spacing, plane, window=window, overlay=overlay, letters=False)
            if example.within is not None:
                hatch_beyond(axes, example.voxels.shape, spacing, plane, example.within)
        add_color_bar(figure, list(panels[1]), overlay)
    return figure


def _numbers(values: Sequence[float | None]) -> Sequence[float]:
    return [float("nan") if value is None else value for value in values]
