"""Points on a plane by class: for print, a picture; colours and marks are those of the map one can hover over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dagman.reports.style import CYCLE, HALF_WIDTH, MUTED, add_legend, new_figure, style_axes

MARKS = ("circle", "square", "triangle", "diamond")
_SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}


def choose_mark(code: int) -> tuple[str, str]:
    """Colour and mark of a class; 32 differ. No class (-1) is grey."""
    if code < 0:
        return MUTED, "circle"
    return CYCLE[code % len(CYCLE)], MARKS[code // len(CYCLE) % len(MARKS)]


def draw_scatter(points: NDArray, codes: NDArray[np.int64], classes: Sequence[str], *, title: str = "") -> Figure:
    """Points (n 2) with their classes; axes have no unit that means anything, and so no numbers."""
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
    add_legend(figure, axes)
    return figure
