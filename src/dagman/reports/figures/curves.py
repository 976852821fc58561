"""Line plots of values over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dagman.reports.style import CYCLE, HALF_WIDTH, MUTED, add_legend, new_figure, style_axes

_FEW = 40


@dataclass(frozen=True)
class Series:
    """Values at steps; `spread` is the half width of a band around them."""

    steps: Sequence[float]
    values: Sequence[float]
    spread: Sequence[float] | None = None
    color: str | None = None
    dashed: bool = False


def draw_curves(
    series: Mapping[str, Series],
    *,
    title: str = "",
    y: str = "",
    x: str = "step",
    references: Mapping[str, float] | None = None,
    log: bool = False,
    width: float = HALF_WIDTH,
) -> Figure:
    """Plot each series as a line; long series are drawn faintly, with their running mean on top.

    Args:
        series: Series by name; values that are not finite leave gaps.
        title: Title of the figure.
        y: Label of the y axis.
        x: Label of the x axis.
        references: Named horizontal lines, such as ln K.
        log: Whether the y axis is logarithmic; ignored if any value is not positive.
        width: Width in inches.
    """
    figure = new_figure(width)
    axes = figure.subplots()
    style_axes(axes, x=x, y=y, title=title)
    for (name, line), color in zip(series.items(), CYCLE * (len(series) // len(CYCLE) + 1), strict=False):
        color = line.color or color
        steps, values = np.asarray(line.steps, dtype=float), np.asarray(line.values, dtype=float)
        label = name if len(series) > 1 else "_"
        dashes = "--" if line.dashed else "-"
        if len(values) > _FEW:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth_values(values), dashes, color=color, linewidth=1.6, label=label)
        else:
            axes.plot(
                steps,
                values,
                dashes,
                color=color,
                linewidth=1.6,
                marker="" if line.dashed and len(values) > 1 else "o",
                markersize=3 if len(values) > 1 else 5,
                label=label,
            )
        if line.spread is not None:
            spread = np.asarray(line.spread, dtype=float)
            axes.fill_between(steps, values - spread, values + spread, color=color, alpha=0.15, linewidth=0)
    for name, level in (references or {}).items():
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=":")
        axes.annotate(name, (1.0, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7.5, color=MUTED)
    everything = np.concatenate([np.asarray(line.values, dtype=float) for line in series.values()] or [np.zeros(0)])
    if log and len(everything) and (everything > 0).all():
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if len(series) > 1:
        add_legend(figure, axes)
    return figure


def smooth_values(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute a centred running mean over a twentieth of the values, shorter at the ends; non-finite values are ignored."""
    half = max(1, len(values) // 40)
    finite = np.isfinite(values)
    kernel = np.ones(2 * half + 1)
    sums = np.convolve(np.where(finite, values, 0.0), kernel)[half:-half]
    counts = np.convolve(finite.astype(float), kernel)[half:-half]
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)
