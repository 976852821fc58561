"""Figures of survival analysis: Kaplan-Meier curves with numbers at risk, and calibration at a horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dagman.reports.style import BLUE, HALF_WIDTH, MUTED, ORANGE, add_legend, new_figure, style_axes

_COLORS = (BLUE, ORANGE)
_SMALL = 7.5


def draw_survival_groups(groups: Mapping[str, Any], *, title: str = "", x: str = "time") -> Figure:
    """Draw Kaplan-Meier curves of groups with confidence bands, ticks for censored patients, and numbers at risk below.

    Args:
        groups: As returned by `describe_groups`.
        title: Title of the figure.
        x: Label of the time axis.
    """
    figure = new_figure(HALF_WIDTH, 3.9)
    axes, table = figure.subplots(2, 1, height_ratios=[4.2, 1.0], sharex=True)
    style_axes(axes, y="event-free fraction", title=title)
    for group, color in zip(groups["groups"], _COLORS, strict=False):
        times, survival = _as_floats(group["times"]), _as_floats(group["survival"])
        end = max(groups["ticks"][-1], times[-1])
        steps, values = np.append(times, end), np.append(survival, survival[-1])
        label = f"{group['name']} ({group['events']} of {group['patients']} with the event)"
        axes.step(steps, values, where="post", color=color, linewidth=1.7, label=label)
        axes.fill_between(
            times, _as_floats(group["low"]), _as_floats(group["high"]), step="post", color=color, alpha=0.13, linewidth=0
        )
        censored = _as_floats(group["censored"])
        if len(censored):
            at = survival[np.searchsorted(times, censored, side="right") - 1]
            axes.plot(censored, at, "|", color=color, markersize=6, markeredgewidth=1.0)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xticks(groups["ticks"])
    # The legend goes below the figure; inside the axes it would cover a curve.
    add_legend(figure, axes)
    style_axes(table, x=x)
    table.grid(False)
    table.spines["left"].set_visible(False)
    table.set_yticks(range(len(groups["groups"])), [group["name"] for group in groups["groups"]])
    table.set_ylim(len(groups["groups"]) - 0.5, -0.9)
    table.tick_params(axis="y", length=0)
    table.text(0, 1.0, "at risk", transform=table.transAxes, fontsize=_SMALL, color=MUTED, va="top")
    for row, (group, color) in enumerate(zip(groups["groups"], _COLORS, strict=False)):
        for tick, count in zip(groups["ticks"], group["at_risk"], strict=True):
            table.text(tick, row, str(int(count)), ha="center", va="center", fontsize=_SMALL, color=color)
    return figure


def draw_survival_calibration(calibration: Mapping[str, Any], *, title: str = "", x: str = "time") -> Figure:
    """Plot observed (Kaplan-Meier, with intervals) against predicted survival at a horizon, one point per group of patients."""
    figure = new_figure(HALF_WIDTH, 3.5)
    axes = figure.subplots()
    horizon = float(calibration["horizon"])
    at = f"{horizon:.0f}" if horizon >= 100 else f"{horizon:.3g}"
    style_axes(axes, x=f"predicted event-free fraction at {at} ({x})", y="observed share", title=title)
    predicted, observed = _as_floats(calibration["predicted"]), _as_floats(calibration["observed"])
    axes.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1)
    low, high = _as_floats(calibration["low"]), _as_floats(calibration["high"])
    reach = np.nan_to_num(np.stack([observed - low, high - observed])).clip(0)
    axes.errorbar(predicted, observed, yerr=reach, fmt="o", color=BLUE, markersize=5, linewidth=1.2, capsize=2)
    for place, count in zip(zip(predicted, observed, strict=True), calibration["counts"], strict=True):
        axes.annotate(f"n={int(count)}", place, textcoords="offset points", xytext=(6, 4), fontsize=_SMALL, color=MUTED)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.04)
    return figure


def _as_floats(values: Sequence[float | None]) -> np.ndarray:
    """Convert numbers from JSON, in which undefined values are null, to an array with NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
