"""The common style of all pages and figures: colours, sizes, and functions to create figures and style axes.

Figures are `Figure` objects on the Agg canvas; pyplot and its global state are not used.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dagman.scans.structures.colors import CYCLE as CYCLE

INK, MUTED, RULE, PAPER = "#1b2733", "#5b6b7a", "#d9e0e6", "#ffffff"
NEUTRAL = "#73808d"
"""Colour of text next to slices; it is legible on both white and black, as figures of slices are not inverted on a dark page."""
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, RED, _ = CYCLE
"""Colours of series, in this order."""
LEVELS = {"ok": GREEN, "warn": YELLOW, "bad": RED}
"""Colours of the levels of verdicts."""

FULL_WIDTH, HALF_WIDTH = 9.6, 4.7
"""Widths of figures in inches: the full column of a page, and half of it."""
DPI = 120
"""Resolution of PNGs. Pages show them at their size in inches, so that text has the same size in all figures."""
_SMALL, _NORMAL = 8.0, 9.0


def new_figure(width: float = HALF_WIDTH, height: float = 2.7) -> Figure:
    """Create an empty figure of `width` x `height` inches on the Agg canvas."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Set the title and labels, a light grid and an unobtrusive frame."""
    axes.set_title(title, fontsize=_NORMAL + 0.5, color=INK, loc="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=_SMALL, color=MUTED)
    axes.set_ylabel(y, fontsize=_SMALL, color=MUTED)
    axes.tick_params(which="both", labelsize=_SMALL, colors=MUTED, length=3)
    axes.grid(True, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Add a legend below the figure, where it does not cover the data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = min(len(handles), 3 if max(map(len, labels)) < 20 else 2)
        figure.legend(handles, labels, loc="outside lower center", fontsize=_SMALL, frameon=False, labelcolor=INK, ncols=columns)
