"""Pictures of attention on slices in radiological convention (patient's right on the left), true to scale.

Colours are those of the reports: transparent at uniform attention, orange above, blue below. The colour scale ends at least
`LEAST_REACH` from uniform, so that the nearly uniform attention of short runs appears uniform; every picture states its range.
Slices are chosen within the body, because the maximum of attention may lie in air.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from dagman.encoder.attention import Attention
from dagman.records.files import write_whole
from dagman.reports.figures.planes import AROUND_ONE, LEAST_REACH
from dagman.store.body import CT_LEVELS, SCALED_LEVELS, mask_body

PERCENTILES = (2.0, 98.0)
DEEP_MM = 25.0
"""Smallest depth below the skin, in mm, of the maximum that is shown."""
_INK, _PAPER, _FAINT = "#e8e8e8", "#111111", "#8fd3ff"
_WIDTH = 12.0
"""Width of a picture in inches."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A slicing plane of a RAS+ volume: its normal axis, and the letters at the left, right, top and bottom of a picture."""

    name: str
    axis: int
    letters: tuple[str, str, str, str]

    def cut(self, volume: NDArray, place: int) -> NDArray:
        """Extract a slice as an image: rows from top to bottom, columns from left to right."""
        # RAS+ indices increase to the right, front and head, which are the left and top edges of a picture.
        return volume[(slice(None),) * self.axis + (place,)][::-1, ::-1].T


PLANES = (
    Plane(name="Axial", axis=2, letters=("R", "L", "A", "P")),
    Plane(name="Coronal", axis=1, letters=("R", "L", "S", "I")),
    Plane(name="Sagittal", axis=0, letters=("A", "P", "S", "I")),
)


def draw_overlays(attention: Attention, folder: str | Path, *, intensity: tuple[float, float]) -> list[Path]:
    """Write three pictures of attention and return their paths.

    `overlay_maximum.png` and `overlay_center.png` show the mean over heads in three planes, through its maximum in the body and
    through the body's centre. `overlay_heads.png` shows an axial slice for each head.

    Args:
        attention: The attention of one scan.
        folder: Where to write the pictures.
        intensity: Intensities shown as black and white; HU for CT.
    """
    folder = Path(folder)
    body = find_body_mask(attention)
    center = tuple(int(np.median(places)) for places in np.nonzero(body))
    # Stay away from the skin, where the other two planes would show air. The body may continue beyond the border of the scan.
    depth = max(1, round(DEEP_MM / attention.prepared.spacing[0]))
    deep = ndimage.binary_erosion(body, iterations=depth, border_value=1)
    maximum = find_maximum(attention.mean, deep if deep.any() else body)
    pictures = {
        "overlay_maximum.png": draw_planes(attention, maximum, "its maximum in the body", intensity=intensity),
        "overlay_center.png": draw_planes(attention, center, "the centre of the body", intensity=intensity),
        "overlay_heads.png": draw_heads(attention, maximum[2], intensity=intensity),
    }
    for name, figure in pictures.items():
        with write_whole(folder / name) as temporary:
            FigureCanvasAgg(figure).print_png(temporary)
    return [folder / name for name in pictures]


def find_maximum(values: NDArray[np.float32], body: NDArray[np.bool_] | None = None) -> tuple[int, int, int]:
    """Find the voxel with the most attention in the body (None: in the volume); the central voxel if attention is constant."""
    if np.ptp(values) < 1e-6:
        x, y, z = (size // 2 for size in values.shape)
    else:
        inside = values if body is None or not body.any() else np.where(body, values, -np.inf)
        x, y, z = (int(place) for place in np.unravel_index(int(inside.argmax()), values.shape))
    return x, y, z


def find_body_mask(attention: Attention) -> NDArray[np.bool_]:
    """Compute the mask of the body in the prepared scan (X Y Z); everything if no body is found."""
    prepared = attention.prepared
    return mask_body(prepared.voxels, prepared.spacing[0], CT_LEVELS if prepared.modality == "CT" else SCALED_LEVELS)


def share_outside(attention: Attention) -> tuple[float, float]:
    """Compute the fraction of attention outside the body, and the fraction that uniform attention would have there."""
    outside, values = ~find_body_mask(attention), attention.mean
    return float(values[outside].sum() / values.sum()), float(outside.mean())


def describe_outside(attention: Attention) -> str:
    """State `share_outside` in words: "12.1% of the attention lies outside the body (uniform: 13.0%)"."""
    share, uniform = share_outside(attention)
    return f"{share:.1%} of the attention lies outside the body (uniform: {uniform:.1%})"


def draw_planes(attention: Attention, place: Sequence[int], where: str, *, intensity: tuple[float, float]) -> Figure:
    """Draw three planes through a voxel of the prepared scan: the scan above, and with the mean attention below."""
    scan, values = attention.prepared.voxels, attention.mean
    spacing = attention.prepared.spacing
    sizes = [_measure_plane(scan.shape, spacing, plane) for plane in PLANES]
    scale = (_WIDTH - 1.6) / sum(width for width, _ in sizes)
    tallest = max(height for _, height in sizes) * scale
    figure = Figure(figsize=(_WIDTH, 2 * tallest + 1.75), facecolor=_PAPER, dpi=110)
    grid = figure.add_gridspec(
        2,
        4,
        width_ratios=[*(width * scale for width, _ in sizes), 0.22],
        left=0.03,
        right=0.91,
        top=1 - 0.95 / figure.get_figheight(),
        bottom=0.55 / figure.get_figheight(),
        wspace=0.06,
        hspace=0.1,
    )
    norm = _stretch_colours(values)
    for column, plane in enumerate(PLANES):
        at = place[plane.axis]
        plain, overlaid = (figure.add_subplot(grid[row, column]) for row in range(2))
        for axes in (plain, overlaid):
            _show_slice(axes, plane.cut(scan, at), plane, spacing, intensity)
        _lay_over(overlaid, plane.cut(values, at), plane, spacing, norm)
        _mark_planes(plain, plane, place, scan.shape, spacing)
        position = attention.prepared.affine.to_world([place])[0]
        plain.set_title(f"{plane.name}, {'RAS'[plane.axis]} {position[plane.axis]:+.0f} mm", color=_INK, fontsize=10)
    _add_colour_bar(figure, figure.add_subplot(grid[1, 3]), norm)
    edge = attention.stride * spacing[0]
    heads = len(attention.heads)
    _add_words(figure, f"[CLS] attention, mean of {heads} heads, through {where}", values, norm, attention, intensity, edge)
    return figure


def draw_heads(attention: Attention, level: int, *, intensity: tuple[float, float]) -> Figure:
    """Draw the axial slice at index `level` of the prepared scan with the attention of each head, on a common colour scale."""
    scan, spacing, plane = attention.prepared.voxels, attention.prepared.spacing, PLANES[0]
    maps = [attention.head(number) for number in range(1, len(attention.heads) + 1)]
    together = np.stack(maps)
    norm = _stretch_colours(together)
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    width, height = _measure_plane(scan.shape, spacing, plane)
    cell = (_WIDTH - 1.6) / columns
    figure = Figure(figsize=(_WIDTH, rows * (cell * height / width + 0.3) + 1.6), facecolor=_PAPER, dpi=110)
    grid = figure.add_gridspec(
        rows,
        columns + 1,
        width_ratios=[*[cell] * columns, 0.22],
        left=0.03,
        right=0.91,
        top=1 - 0.95 / figure.get_figheight(),
        bottom=0.55 / figure.get_figheight(),
        wspace=0.06,
        hspace=0.18,
    )
    for number, values in enumerate(maps):
        axes = figure.add_subplot(grid[divmod(number, columns)])
        _show_slice(axes, plane.cut(scan, level), plane, spacing, intensity)
        _lay_over(axes, plane.cut(values, level), plane, spacing, norm)
        axes.set_title(f"Head {number + 1}: {_write_range(values)}", color=_INK, fontsize=10)
    _add_colour_bar(figure, figure.add_subplot(grid[:, columns]), norm)
    z = attention.prepared.affine.to_world([[0, 0, level]])[0][2]
    title = f"[CLS] attention of each head, axial, S {z:+.0f} mm (the slice of the mean's maximum in the body)"
    _add_words(figure, title, together, norm, attention, intensity, attention.stride * spacing[0])
    return figure


def describe_range(values: NDArray[np.float32]) -> str:
    """State the range of attention relative to uniform, such as "0.93 to 1.08 of uniform"."""
    return f"{_write_range(values)} of uniform"


def _write_range(values: NDArray[np.float32]) -> str:
    low, high = float(values.min()), float(values.max())
    digits = 2 if high - low >= 0.02 else 4
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _measure_plane(shape: Sequence[int], spacing: Sequence[float], plane: Plane) -> tuple[float, float]:
    across, upward = (shape[axis] * spacing[axis] for axis in range(3) if axis != plane.axis)
    return across, upward


def _show_slice(axes: Axes, pixels: NDArray, plane: Plane, spacing: Sequence[float], intensity: tuple[float, float]) -> None:
    across, upward = (spacing[axis] for axis in range(3) if axis != plane.axis)
    axes.imshow(pixels, cmap="gray", vmin=intensity[0], vmax=intensity[1], aspect=upward / across, interpolation="bilinear")
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    left, right, top, bottom = plane.letters
    for letter, x, y in ((left, 0.025, 0.5), (right, 0.975, 0.5), (top, 0.5, 0.965), (bottom, 0.5, 0.035)):
        axes.text(
            x, y, letter, transform=axes.transAxes, color="white", fontsize=11, fontweight="bold", ha="center", va="center",
            bbox={"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip


def _lay_over(axes: Axes, values: NDArray, plane: Plane, spacing: Sequence[float], norm: Normalize) -> None:
    across, upward = (spacing[axis] for axis in range(3) if axis != plane.axis)
    axes.imshow(values, cmap=AROUND_ONE, norm=norm, aspect=upward / across, interpolation="bilinear")


def _mark_planes(axes: Axes, plane: Plane, place: Sequence[int], shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Draw thin lines where the other two planes intersect this one."""
    across, upward = (axis for axis in range(3) if axis != plane.axis)
    axes.axvline(shape[across] - 1 - place[across], color=_FAINT, linewidth=0.6, alpha=0.8)
    axes.axhline(shape[upward] - 1 - place[upward], color=_FAINT, linewidth=0.6, alpha=0.8)


def _stretch_colours(values: NDArray[np.float32]) -> Normalize:
    reach = max(float(np.abs(np.percentile(values, PERCENTILES) - 1.0).max()), LEAST_REACH)
    return Normalize(1.0 - reach, 1.0 + reach)


def _add_colour_bar(figure: Figure, axes: Axes, norm: Normalize) -> None:
    # Mid grey behind the translucent colours gives them the same appearance as on the slices.
    axes.set_facecolor("#808080")
    bar = figure.colorbar(ScalarMappable(norm, AROUND_ONE), cax=axes)
    bar.set_label("attention relative to uniform (1 = uniform)", color=_INK, fontsize=9)
    bar.ax.tick_params(colors=_INK, labelsize=8)
    bar.ax.yaxis.get_offset_text().set_color(_INK)
    bar.ax.ticklabel_format(useOffset=False)


def _add_words(
    figure: Figure,
    title: str,
    values: NDArray[np.float32],
    norm: Normalize,
    attention: Attention,
    intensity: tuple[float, float],
    edge: float,
) -> None:
    height = figure.get_figheight()
    shown = np.array([norm.vmin or 0.0, norm.vmax or 0.0], dtype=np.float32)
    figure.text(0.03, 1 - 0.22 / height, title, color=_INK, fontsize=13, fontweight="bold", va="center")
    near = float(shown[1]) - 1.0 <= LEAST_REACH + 1e-6
    as_far = "so that a nearly uniform map appears uniform" if near else "the 2nd to 98th percentile"
    words = f"True range: {describe_range(values)}. The colour scale spans {_write_range(shown)}, {as_far}."
    words += f" {describe_outside(attention)}."
    figure.text(0.03, 1 - 0.5 / height, words, color=_INK, fontsize=10, va="center")
    unit = "HU" if attention.prepared.modality == "CT" else "(stored values)"
    foot = (
        f"{attention.prepared.modality} window {intensity[0]:g} to {intensity[1]:g} {unit}. "
        f"Attention units are {edge:g} mm wide; maps are interpolated linearly between them. {attention.origin.capitalize()}.\n"
        "Radiological convention: the patient's right is on the left. Not for diagnosis."
    )
    figure.text(0.03, 0.25 / height, foot, color=_INK, fontsize=8.5, va="center")
