"""Forest plots: values with their intervals, one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from dagman.reports.style import CYCLE, HALF_WIDTH, INK, MUTED, add_legend, new_figure, style_axes


def draw_intervals(
    rows: Sequence[str],
    series: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    x: str = "",
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
    width: float = HALF_WIDTH,
) -> Figure:
    """Draw values with intervals, in rows, with one colour per series.

    Args:
        rows: Labels of the rows, from top to bottom.
        series: (value, low, high) by name of the series and row.
        x: Label of the x axis.
        reference: Value of a dotted line, such as chance.
        limits: Ends of the axis, such as the range of the measure; None to fit the data.
        title: Title of the figure.
        width: Width in inches.
    """
    figure = new_figure(width, 0.9 + 0.22 * len(rows) * (len(series) + 1))
    axes = figure.subplots()
    style_axes(axes, x=x, title=title)
    span = len(series) + 1.0
    for number, ((name, values), color) in enumerate(zip(series.items(), CYCLE, strict=False)):
        shown = [(row * span + number, *values[label]) for row, label in enumerate(rows) if label in values]
        if not shown:
            continue
        y, value, low, high = zip(*shown, strict=True)
        axes.hlines(y, low, high, color=color, linewidth=1.6)
        axes.plot(value, y, "o", color=color, markersize=4.5, label=name)
        for height, center, end in zip(y, value, high, strict=True):
            if center != center:
                continue
            axes.annotate(
                f"{center:.2f}",
                (center if end != end else max(end, center), height),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
    if reference is not None:
        axes.axvline(reference, color=MUTED, linestyle=":", linewidth=1)
    axes.set_yticks([row * span + (len(series) - 1) / 2 for row in range(len(rows))], rows)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(rows) * span - 1, -1)
    axes.margins(x=0.12)
    if limits is not None:
        edge = 0.04 * (limits[1] - limits[0])
        axes.set_xlim(limits[0] - edge, limits[1] + 2 * edge)
    axes.grid(False, axis="y")
    if len(series) > 1:
        add_legend(figure, axes)
    return figure
