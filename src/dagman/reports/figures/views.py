"""Figures of views: masked units, reconstructions and attention.

A view is X Y Z in RAS+ order with intensities in [0, 1]; masks and attention are on the grid of units, of the same extent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dagman.reports.figures.planes import (
    AXIAL,
    CORONAL,
    PLANES,
    Contour,
    Overlay,
    Plane,
    add_color_bar,
    add_contour_legend,
    draw_plane,
    draw_scale_bar,
    draw_three_planes,
    find_reach,
    overlay_relative,
)
from dagman.reports.style import FULL_WIDTH, NEUTRAL, SKY, YELLOW, new_figure

MASKED, HINT = "masked: hidden from the student", "hint: highly attended, left visible"
"""Labels in legends."""
_COVER = "#3b4b5a"
_LARGEST_DIFFERENCE = 0.4


def draw_masks(
    view: NDArray,
    spacing: Sequence[float],
    hidden: NDArray[np.bool_],
    hints: NDArray[np.bool_] | None = None,
    *,
    width: float = FULL_WIDTH,
) -> Figure:
    """Draw a view with masked units shaded and outlined, and hints (visible units among the most attended) framed."""
    contours = [Contour(mask=hidden, color=SKY, label=MASKED, fill=0.4)]
    if hints is not None and hints.any():
        contours.append(Contour(mask=hints, color=YELLOW, label=HINT, width=2.2))
    return draw_three_planes(view, spacing, contours=contours, width=width)


def draw_restored(
    view: NDArray, restored: NDArray, spacing: Sequence[float], hidden: NDArray[np.bool_], planes: Sequence[Plane] = PLANES
) -> Figure:
    """Draw the student's input, its reconstruction, the original and their difference, one row per plane.

    In the reconstruction, visible units are copied from the view, because the student does not reconstruct them.
    """
    return _draw_rows([(view, restored, hidden, plane) for plane in planes], spacing, [plane.name.capitalize() for plane in planes])


def draw_restored_views(
    views: Sequence[NDArray], restored: Sequence[NDArray], spacing: Sequence[float], hidden: Sequence[NDArray]
) -> Figure:
    """Draw the same as `draw_restored` for axial slices of several views, one row per view."""
    rows = [(view, back, mask, AXIAL) for view, back, mask in zip(views, restored, hidden, strict=True)]
    return _draw_rows(rows, spacing, [f"View {number}" for number in range(2, len(rows) + 2)])


def draw_summary(
    view: NDArray, restored: NDArray, spacing: Sequence[float], hidden: NDArray[np.bool_], relative: NDArray
) -> Figure:
    """Draw a view, its masked version, its reconstruction, and its attention relative to uniform; axial above coronal."""
    figure = new_figure(FULL_WIDTH, 2 * 2.25 + 0.3)
    panels = figure.subplots(2, 4, squeeze=False)
    overlay = overlay_relative(relative)
    seen = [Contour(mask=hidden, color=_COVER, fill=1.0, width=0.0)]
    for row, plane in zip(panels, (AXIAL, CORONAL), strict=True):
        draw_plane(row[0], view, spacing, plane)
        draw_plane(row[1], view, spacing, plane, contours=seen, letters=False)
        draw_plane(row[2], np.where(spread_units(hidden, view.shape), restored, view), spacing, plane, letters=False)
        draw_plane(row[3], view, spacing, plane, overlay=overlay, letters=False)
    for axes, name in zip(panels[0], ("Scan", "Masked", "Reconstructed", "Attention"), strict=True):
        _name(axes, name)
    draw_scale_bar(panels[0, 0], float(panels[0, 0].get_xlim()[1]))
    add_color_bar(figure, list(panels[:, 3]), overlay)
    return figure


def draw_attention(view: NDArray, spacing: Sequence[float], relative: NDArray) -> Figure:
    """Draw a view, and below it the same slices with attention relative to uniform (1 = uniform) in colour."""
    overlay = overlay_relative(relative)
    sides = [size * step for size, step in zip(view.shape, spacing, strict=True)]
    figure = new_figure(
        FULL_WIDTH, 2 * min((FULL_WIDTH - 1.2) * max(sides[1:]) / sum(sides[plane.across] for plane in PLANES), 4.0) + 0.5
    )
    panels = figure.subplots(2, 3, width_ratios=[sides[plane.across] for plane in PLANES])
    for column, plane in enumerate(PLANES):
        draw_plane(panels[0, column], view, spacing, plane)
        draw_plane(panels[1, column], view, spacing, plane, overlay=overlay)
        _name(panels[0, column], plane.name.capitalize())
    draw_scale_bar(panels[0, 0], sides[0])
    add_color_bar(figure, list(panels.flatten()), overlay)
    return figure


def draw_heads(view: NDArray, spacing: Sequence[float], relative: NDArray) -> Figure:
    """Draw the axial slice with each attention head (H x y z, relative to uniform), on a common colour scale."""
    heads = len(relative)
    columns = min(heads, 4)
    rows = -(-heads // columns)
    reach = find_reach(relative)
    figure = new_figure(FULL_WIDTH, rows * 2.3 + 0.2)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[heads:]:
        axes.set_visible(False)
    for number, (axes, values) in enumerate(zip(panels, relative, strict=False), start=1):
        draw_plane(axes, view, spacing, AXIAL, overlay=overlay_relative(values, reach=reach), letters=number == 1)
        _name(axes, f"Head {number}")
    add_color_bar(figure, list(panels[:heads]), overlay_relative(relative))
    return figure


def draw_course(
    view: NDArray, spacing: Sequence[float], restored: Mapping[int, NDArray], relative: Mapping[int, NDArray]
) -> Figure:
    """Draw one axial slice at several steps: reconstructions above, attention below; either may be empty."""
    rows = [kind for kind in (restored, relative) if kind]
    steps = list(rows[0])
    width = min(1.9 * len(steps) + 1.0, FULL_WIDTH)
    figure = new_figure(width, len(rows) * (width - 1) / len(steps) + 0.4)
    panels = figure.subplots(len(rows), len(steps), squeeze=False)
    if restored:
        for axes, volume in zip(panels[0], restored.values(), strict=True):
            draw_plane(axes, volume, spacing, AXIAL, letters=False)
    if relative:
        everything = np.stack(list(relative.values()))
        reach = find_reach(everything)
        for axes, values in zip(panels[-1], relative.values(), strict=True):
            draw_plane(axes, view, spacing, AXIAL, overlay=overlay_relative(values, reach=reach), letters=False)
        add_color_bar(figure, list(panels.flatten()), overlay_relative(everything))
    for axes, step in zip(panels[0], steps, strict=True):
        _name(axes, f"Step {step}")
    return figure


def _draw_rows(rows: Sequence[tuple[NDArray, NDArray, NDArray, Plane]], spacing: Sequence[float], names: Sequence[str]) -> Figure:
    cover = [Contour(mask=np.ones((1, 1, 1), bool), color=_COVER, label=MASKED, fill=1.0)]
    figure = new_figure(FULL_WIDTH, len(rows) * 2.25 + 0.55)
    panels = figure.subplots(len(rows), 4, squeeze=False)
    overlay = Overlay(values=np.zeros((1, 1, 1)), label="")
    for number, (view, restored, hidden, plane) in enumerate(rows):
        voxels = spread_units(hidden, view.shape)
        difference = np.where(voxels, np.abs(restored - view), np.nan)
        overlay = Overlay(
            values=difference,
            label="absolute difference (intensities in [0, 1])",
            low=0.0,
            high=_LARGEST_DIFFERENCE,
            colors="magma",
            opacity=1.0,
        )
        seen = [Contour(mask=hidden, color=_COVER, fill=1.0, width=0.0)]
        draw_plane(panels[number, 0], view, spacing, plane, contours=seen)
        draw_plane(panels[number, 1], np.where(voxels, restored, view), spacing, plane, letters=False)
        draw_plane(panels[number, 2], view, spacing, plane, letters=False)
        draw_plane(panels[number, 3], np.zeros_like(view), spacing, plane, overlay=overlay, letters=False)
        panels[number, 0].set_ylabel(names[number], fontsize=9, color=NEUTRAL)
    for axes, name in zip(panels[0], ("Seen by the student", "Reconstructed", "Original", "Difference"), strict=True):
        _name(axes, name)
    draw_scale_bar(panels[0, 2], float(panels[0, 2].get_xlim()[1]))
    add_color_bar(figure, list(panels[:, 3]), overlay)
    add_contour_legend(figure, cover)
    return figure


def spread_units(cells: NDArray, shape: Sequence[int]) -> NDArray:
    """Repeat values of units over the voxels of a volume of the same extent, whose sides are multiples of the grid's."""
    for axis, (cell, side) in enumerate(zip(cells.shape, shape, strict=True)):
        cells = cells.repeat(side // cell, axis=axis)
    return cells


def _name(axes: Axes, name: str) -> None:
    axes.set_title(name, fontsize=9, color=NEUTRAL)
