"""Two measurements of the same things: how far apart, against how large (Bland and Altman, Lancet 1986)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dagman.reports.style import BLUE, HALF_WIDTH, INK, MUTED, ORANGE, new_figure, style_axes


def draw_agreement(
    predicted: NDArray[np.float64],
    truth: NDArray[np.float64],
    limits: tuple[float, float, float],
    *,
    unit: str = "ml",
    title: str = "",
) -> Figure:
    """Difference (predicted minus true) against the mean of both, a point an item; limits are (low, bias, high), NaN if unknown."""
    figure = new_figure(HALF_WIDTH, 3.0)
    axes = figure.subplots()
    style_axes(axes, x=f"mean of both ({unit})", y=f"model minus reader ({unit})", title=title)
    axes.axhline(0, color=INK, linewidth=0.8)
    for value, name, color in zip(limits, ("lower limit", "bias", "upper limit"), (MUTED, ORANGE, MUTED), strict=True):
        if np.isfinite(value):
            axes.axhline(value, color=color, linewidth=1.1, linestyle="-" if name == "bias" else "--")
            axes.annotate(
                f"{name} {value:+.3g}", (1.0, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7.5
            )
    axes.plot((predicted + truth) / 2, predicted - truth, "o", color=BLUE, markersize=4, alpha=0.75, markeredgewidth=0)
    axes.margins(x=0.08, y=0.18)
    return figure
