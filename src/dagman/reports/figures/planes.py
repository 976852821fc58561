"""Slices of a volume in radiological convention: the patient's left on the image's right, anterior or superior at the top.

Volumes are X Y Z in RAS+ order: indices increase to the patient's right, anterior and superior (see `reorient_scan`). In
sagittal slices, anterior is on the image's left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from dagman.reports.style import FULL_WIDTH, NEUTRAL, new_figure

CONVENTION = "Radiological convention: the patient's left is on the image's right; sagittal slices show the front on the left."
"""States the orientation in captions."""

LEAST_REACH = 0.25
"""Smallest half range of the colour scale of attention around uniform (1), so that a nearly uniform map appears so. [ours]"""

AROUND_ONE = LinearSegmentedColormap.from_list(
    "around-one",
    [(0.0, (0.1, 0.5, 0.95, 0.75)), (0.5, (0.1, 0.5, 0.95, 0.0)), (0.5, (1.0, 0.5, 0.05, 0.0)), (1.0, (1.0, 0.5, 0.05, 0.75))],
)
"""Transparent in the middle, blue below, orange above, so that average values do not tint the scan."""


@dataclass(frozen=True)
class Plane:
    """A slicing plane: its normal axis, the axes shown, and the letters at the edges of the image."""

    name: str
    normal: int
    across: int
    up: int
    left: str
    right: str
    top: str
    bottom: str


AXIAL = Plane("axial", normal=2, across=0, up=1, left="R", right="L", top="A", bottom="P")
CORONAL = Plane("coronal", normal=1, across=0, up=2, left="R", right="L", top="S", bottom="I")
SAGITTAL = Plane("sagittal", normal=0, across=1, up=2, left="A", right="P", top="S", bottom="I")
PLANES = (AXIAL, CORONAL, SAGITTAL)


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Values shown in colour over a volume, on its grid or a coarser grid of the same extent; NaN is transparent.

    Attributes:
        values: X Y Z.
        label: What the values are, with their unit; shown at the colour bar.
        low, high: Ends of the colour scale; None for the range of the values.
        colors: A matplotlib colour map, or its name.
        opacity: 0 (invisible) to 1.
    """

    values: NDArray
    label: str
    low: float | None = None
    high: float | None = None
    colors: str | Colormap = "inferno"
    opacity: float = 0.5

    @property
    def norm(self) -> Normalize:
        """The range of the colour scale; never empty."""
        finite = self.values[np.isfinite(self.values)]
        low = self.low if self.low is not None else float(finite.min()) if finite.size else 0.0
        high = self.high if self.high is not None else float(finite.max()) if finite.size else 1.0
        return Normalize(low, high if high > low else low + 1e-6)


def overlay_relative(values: NDArray, label: str = "attention, times uniform", reach: float | None = None) -> Overlay:
    """Create an overlay of values around 1, such as attention relative to uniform: above is orange, below blue, 1 transparent.

    `reach` is the distance from 1 at which the colour scale ends; None to derive it from the values.
    """
    reach = find_reach(values) if reach is None else reach
    return Overlay(values=values, label=label, low=1.0 - reach, high=1.0 + reach, colors=AROUND_ONE, opacity=1.0)


def find_reach(relative: NDArray) -> float:
    """Find the half range of the colour scale around uniform (1): the largest deviation, but at least `LEAST_REACH`."""
    return max(float(np.nanmax(np.abs(relative - 1.0))), LEAST_REACH)


def describe_reach(relative: NDArray) -> str:
    """State where the colour scale ends, and point out maps that stay within `LEAST_REACH` of uniform.

    >>> describe_reach(np.array([0.992, 1.008]))
    'The colours end at 0.75 and 1.25 times uniform: a map this close to uniform appears uniform.'
    """
    reach = find_reach(relative)
    near = ": a map this close to uniform appears uniform" if float(np.nanmax(np.abs(relative - 1.0))) < LEAST_REACH else ""
    low = f"{1.0 - reach:.2f} and " if reach < 1.0 else ""
    return f"The colours end at {low}{1.0 + reach:.2f} times uniform{near}."


@dataclass(frozen=True, kw_only=True)
class Contour:
    """Outline of a boolean mask (X Y Z), on the volume's grid or a coarser grid of the same extent; `fill` tints the inside."""

    mask: NDArray[np.bool_]
    color: str
    label: str = ""
    fill: float = 0.0
    width: float = 1.2
    style: Literal["solid", "dashed", "dotted"] = "solid"


def take_slice(volume: NDArray, plane: Plane, index: int) -> NDArray:
    """Extract a slice of an X Y Z volume in RAS+ order as an image (row 0 at the top, column 0 on the left)."""
    # np.take would copy the whole volume if it is not in C order.
    return volume[(slice(None),) * plane.normal + (index,)].T[::-1, ::-1]


def draw_three_planes(
    volume: NDArray,
    spacing: Sequence[float],
    point: Sequence[float] | None = None,
    *,
    window: tuple[float, float] = (0.0, 1.0),
    overlay: Overlay | None = None,
    contours: Sequence[Contour] = (),
    title: str = "",
    width: float = FULL_WIDTH,
) -> Figure:
    """Draw axial, coronal and sagittal slices through a point, side by side at the same scale.

    Args:
        volume: X Y Z in RAS+ order, in HU or any other unit.
        spacing: Voxel size in mm.
        point: Voxel index of the intersection of the slices; None for the centre.
        window: Intensities shown as black and white, such as (-1000, 500) HU.
        overlay: Values in colour, with a colour bar.
        contours: Outlines of masks; those with labels are listed in a legend.
        title: Title of the figure.
        width: Width in inches.
    """
    sides = [size * step for size, step in zip(volume.shape, spacing, strict=True)]
    widths = [sides[plane.across] for plane in PLANES]
    tallest = max(sides[plane.up] for plane in PLANES)
    bar = 0.9 if overlay is not None else 0.0
    extra = 0.35 + (0.3 if title else 0.0) + (0.3 if any(contour.label for contour in contours) else 0.0)
    height = min(max((width - bar - 0.3) * tallest / sum(widths), 1.0), 8.0) + extra
    figure = new_figure(width, height)
    grid = figure.add_gridspec(1, 3, width_ratios=widths)
    panels = [figure.add_subplot(grid[0, column]) for column in range(3)]
    for axes, plane in zip(panels, PLANES, strict=True):
        draw_plane(axes, volume, spacing, plane, point, window=window, overlay=overlay, contours=contours)
        axes.set_title(plane.name.capitalize(), fontsize=9, color=NEUTRAL)
    draw_scale_bar(panels[0], widths[0])
    if overlay is not None:
        add_color_bar(figure, panels, overlay)
    add_contour_legend(figure, contours)
    if title:
        figure.suptitle(title, fontsize=10, fontweight="bold", color=NEUTRAL)
    return figure


def draw_plane(
    axes: Axes,
    volume: NDArray,
    spacing: Sequence[float],
    plane: Plane,
    point: Sequence[float] | None = None,
    *,
    window: tuple[float, float] = (0.0, 1.0),
    overlay: Overlay | None = None,
    contours: Sequence[Contour] = (),
    letters: bool = True,
) -> None:
    """Draw one slice in axes in mm; the arguments are those of `draw_three_planes`, and `letters` shows the orientation."""
    where = volume.shape[plane.normal] / 2 if point is None else point[plane.normal] + 0.5
    share = where / volume.shape[plane.normal]
    wide, tall = volume.shape[plane.across] * spacing[plane.across], volume.shape[plane.up] * spacing[plane.up]
    extent = (0.0, wide, tall, 0.0)
    axes.imshow(
        _slice_at(volume, plane, share), cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear"
    )
    if overlay is not None:
        values = np.ma.masked_invalid(_slice_at(overlay.values, plane, share))
        axes.imshow(values, cmap=overlay.colors, norm=overlay.norm, alpha=overlay.opacity, extent=extent, interpolation="nearest")
    for contour in contours:
        mask = _slice_at(contour.mask, plane, share).astype(bool)
        if contour.fill:
            tint = np.zeros((*mask.shape, 4))
            tint[mask] = to_rgba(contour.color, contour.fill)
            axes.imshow(tint, extent=extent, interpolation="nearest")
        axes.add_collection(_outline(mask, wide, tall, contour))
    axes.set(xlim=(0, wide), ylim=(tall, 0), xticks=[], yticks=[], facecolor="black")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if letters:
        _mark_edges(axes, plane)


def hatch_beyond(
    axes: Axes, shape: Sequence[int], spacing: Sequence[float], plane: Plane, within: Sequence[Sequence[float]]
) -> None:
    """Hatch the part of the central slice outside `within`, given as (start, stop) along X, Y, Z in voxels."""
    wide, tall = shape[plane.across] * spacing[plane.across], shape[plane.up] * spacing[plane.up]
    start, stop = within[plane.normal]
    left, right, top, bottom = 0.0, 0.0, 0.0, 0.0
    if start <= shape[plane.normal] / 2 <= stop:
        # Both axes of an image run against the index.
        right, left = (wide * (1 - edge / shape[plane.across]) for edge in within[plane.across])
        bottom, top = (tall * (1 - edge / shape[plane.up]) for edge in within[plane.up])
    corners = ((0, 0, wide, top), (0, bottom, wide, tall), (0, top, left, bottom), (right, top, wide, bottom))
    for x, y, until_x, until_y in corners:
        if until_x - x > 0 and until_y - y > 0:
            axes.add_patch(
                Rectangle(
                    (x, y), until_x - x, until_y - y, facecolor=(0, 0, 0, 0.45), edgecolor=(1, 1, 1, 0.6), hatch="///", linewidth=0
                )
            )


def draw_scale_bar(axes: Axes, extent: float) -> None:
    """Draw a white scale bar of a round length in mm at the lower left, at most a third of `extent` mm long."""
    length = max((size for size in (5, 10, 20, 50, 100) if size <= extent / 3), default=2)
    bottom = axes.get_ylim()[0]
    axes.plot([extent * 0.05, extent * 0.05 + length], [bottom * 0.95] * 2, color="white", linewidth=2, solid_capstyle="butt")
    text = axes.text(extent * 0.05, bottom * 0.93, f"{length} mm", color="white", fontsize=7, va="bottom")
    text.set_path_effects([patheffects.withStroke(linewidth=1.5, foreground="black")])


def add_color_bar(figure: Figure, panels: Sequence[Axes], overlay: Overlay) -> None:
    """Add the colour bar of an overlay next to its panels."""
    bar = figure.colorbar(ScalarMappable(overlay.norm, overlay.colors), ax=list(panels), shrink=0.85, pad=0.01, aspect=18)
    negative = bool(np.any(overlay.values < 0))
    if not negative and (overlay.norm.vmin or 0.0) < 0:
        # The colour scale is symmetric around 1, but attention cannot be negative.
        bar.ax.set_ylim(bottom=0)
    bar.set_label(overlay.label, fontsize=8, color=NEUTRAL)
    bar.ax.tick_params(labelsize=8, colors=NEUTRAL)
    bar.outline.set_visible(False)


def add_contour_legend(figure: Figure, contours: Sequence[Contour]) -> None:
    """Add a legend below the figure for the contours that have labels."""
    named = [contour for contour in contours if contour.label]
    if named:
        handles = [
            Patch(facecolor=to_rgba(c.color, max(c.fill, 0.0)), edgecolor=c.color, linestyle=c.style, linewidth=1.5, label=c.label)
            for c in named
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(named), fontsize=8, frameon=False, labelcolor=NEUTRAL)


def _slice_at(volume: NDArray, plane: Plane, share: float) -> NDArray:
    # The position is a fraction of the extent, because overlays may have a coarser grid than the volume.
    size = volume.shape[plane.normal]
    return take_slice(volume, plane, min(max(int(share * size), 0), size - 1))


def _outline(mask: NDArray[np.bool_], wide: float, tall: float, contour: Contour) -> LineCollection:
    # Follow the edges of cells; a smoothed contour would suggest more resolution than the mask has.
    rows, columns = mask.shape
    padded = np.pad(mask, 1)
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    along = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    horizontal = [((x, y), (x + 1, y)) for y, x in across]
    vertical = [((x, y), (x, y + 1)) for y, x in along]
    segments = np.array(horizontal + vertical, dtype=float).reshape(-1, 2, 2) * (wide / columns, tall / rows)
    return LineCollection(
        list(segments), colors=contour.color, linewidths=contour.width, linestyles=contour.style, capstyle="round"
    )


def _mark_edges(axes: Axes, plane: Plane) -> None:
    places = {
        plane.left: (0.02, 0.5, "left", "center"),
        plane.right: (0.98, 0.5, "right", "center"),
        plane.top: (0.5, 0.98, "center", "top"),
        plane.bottom: (0.5, 0.02, "center", "bottom"),
    }
    for letter, (x, y, horizontal, vertical) in places.items():
        text = axes.text(
            x, y, letter, transform=axes.transAxes, ha=horizontal, va=vertical, color="white", fontsize=8, fontweight="bold"
        )
        text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])
