"""Agreement of predicted and true numbers: scatter, residual and Bland-Altman plots (Bland and Altman, Lancet 1986)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dagman.reports.style import BLUE, HALF_WIDTH, INK, MUTED, ORANGE, new_figure, style_axes


def draw_against_truth(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], *, unit: str, mean: float, title: str = ""
) -> Figure:
    """Plot predicted against true numbers, one point per item, with the line of identity and the prediction of the mean."""
    figure = new_figure(HALF_WIDTH, 3.4)
    axes = figure.subplots()
    style_axes(axes, x=f"true {unit}", y=f"predicted {unit}", title=title)
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
    axes.plot(ends, ends, ":", color=INK, linewidth=1)
    axes.axhline(mean, color=MUTED, linestyle="--", linewidth=1)
    _name_line(axes, mean, f"mean {mean:.3g}")
    axes.plot(truth, predicted, "o", color=BLUE, markersize=4, alpha=0.75, markeredgewidth=0)
    axes.margins(0.06)
    return figure


def draw_residuals(truth: NDArray[np.float64], predicted: NDArray[np.float64], *, unit: str, title: str = "") -> Figure:
    """Plot residuals (predicted minus true) against predictions, one point per item; a slope or funnel is a systematic error."""
    figure = new_figure(HALF_WIDTH, 3.4)
    axes = figure.subplots()
    style_axes(axes, x=f"predicted {unit}", y="predicted minus true", title=title)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.plot(predicted, predicted - truth, "o", color=BLUE, markersize=4, alpha=0.75, markeredgewidth=0)
    axes.margins(0.08)
    return figure


def draw_agreement(
    predicted: NDArray[np.float64],
    truth: NDArray[np.float64],
    limits: tuple[float, float, float],
    *,
    unit: str = "ml",
    title: str = "",
) -> Figure:
    """Draw a Bland-Altman plot: difference (predicted minus true) against the mean of both, one point per item.

    Args:
        predicted: Predicted values.
        truth: True values.
        limits: Lower limit of agreement, bias and upper limit; NaN if unknown.
        unit: Unit of the values.
        title: Title of the figure.
    """
    figure = new_figure(HALF_WIDTH, 3.0)
    axes = figure.subplots()
    style_axes(axes, x=f"mean of both ({unit})", y=f"model minus reader ({unit})", title=title)
    axes.axhline(0, color=INK, linewidth=0.8)
    for value, name, color in zip(limits, ("lower limit", "bias", "upper limit"), (MUTED, ORANGE, MUTED), strict=True):
        if np.isfinite(value):
            axes.axhline(value, color=color, linewidth=1.1, linestyle="-" if name == "bias" else "--")
            _name_line(axes, value, f"{name} {value:+.3g}")
    axes.plot((predicted + truth) / 2, predicted - truth, "o", color=BLUE, markersize=4, alpha=0.75, markeredgewidth=0)
    axes.margins(x=0.08, y=0.18)
    return figure


def _name_line(axes: Axes, height: float, text: str) -> None:
    """Label a horizontal line above its right end."""
    axes.annotate(
        text,
        (1.0, height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7.5,
    )
