"""Scatter plots of classes for print, with the colours and markers of the interactive map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dagman.reports.style import CYCLE, HALF_WIDTH, INK, MUTED, add_legend, new_figure, style_axes

MARKS = ("circle", "square", "triangle", "diamond", "cross", "plus", "down", "star")
_SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "X", "plus": "P", "down": "v", "star": "*"}
_COLORS = tuple(color for color in CYCLE if color != MUTED)


def choose_mark(code: int) -> tuple[str, str]:
    """Choose the colour and marker of a class.

    There are 56 combinations, and consecutive classes differ in both. Code -1 (no class) is a grey circle.
    """
    if code < 0:
        return MUTED, "circle"
    return _COLORS[code % len(_COLORS)], MARKS[code % len(MARKS)]


def place_labels(points: NDArray, codes: NDArray[np.int64], line: float) -> dict[int, tuple[float, float]]:
    """Place the name of each class at its median x, above its points; names that would overlap are moved up by `line`."""
    placed: dict[int, tuple[float, float]] = {}
    classes = {int(code): points[codes == code] for code in np.unique(codes[codes >= 0])}
    tops = {code: (np.median(own[:, 0]), own[:, 1].max() + line) for code, own in classes.items()}
    for code, (x, y) in sorted(tops.items(), key=lambda item: item[1][1]):
        # A name is about as wide as ten lines are high, so only names within that distance can overlap.
        near = sorted((other for other_x, other in placed.values() if abs(other_x - x) < 10 * line))
        for other in near:
            if abs(other - y) < line:
                y = other + line
        placed[code] = (float(x), float(y))
    return placed


def draw_scatter(points: NDArray, codes: NDArray[np.int64], classes: Sequence[str], *, title: str = "") -> Figure:
    """Draw points (n 2) by class; axes have no ticks, because their units have no meaning."""
    figure = new_figure(HALF_WIDTH, 3.9 + 0.17 * -(-len(classes) // 2))
    axes = figure.subplots()
    style_axes(axes, title=title)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    for code in np.unique(codes):
        color, mark = choose_mark(int(code))
        chosen = points[codes == code]
        name = classes[int(code)] if code >= 0 else "none"
        axes.plot(chosen[:, 0], chosen[:, 1], _SHAPES[mark], color=color, markersize=3.5, alpha=0.8, markeredgewidth=0, label=name)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    for code, (x, y) in place_labels(points, codes, 0.032 * (high - low)).items():
        text = axes.annotate(classes[code], (x, y), ha="center", va="center", fontsize=6.5, color=INK, fontweight="bold")
        text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])
    add_legend(figure, axes)
    return figure
