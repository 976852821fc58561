"""An interactive scatter plot: hovering over a point shows its crop, name, patient and class.

Inline SVG with a short script; no plotting library is needed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from dagman.reports.assets import read_asset
from dagman.reports.figures.scatter import choose_mark, place_labels

_SIDE = 640
_MARGIN = 14
_RADIUS = 4.5
_EDGE = 80.0
"""Distance from the left or right side within which names extend inwards, so that they are not cut off."""


@dataclass(frozen=True, kw_only=True)
class MapPoint:
    """One point of the map.

    Attributes:
        x, y: Position, in any unit.
        code: Index of its class; -1 for none.
        name: Name of the item.
        lines: Further lines of its tooltip.
        tile: Index of its image in the sheet; -1 for none.
    """

    x: float
    y: float
    code: int
    name: str
    lines: tuple[str, ...]
    tile: int = -1


@dataclass(frozen=True, kw_only=True)
class TileSheet:
    """A PNG of square tiles of `side` pixels, in rows of `columns` tiles."""

    png: bytes
    side: int
    columns: int


def render_hover_map(points: Sequence[MapPoint], classes: Sequence[str], sheet: TileSheet | None, *, name: str) -> str:
    """Render a map as HTML.

    Without scripts, each point still has a title that describes it.

    Args:
        points: The points.
        classes: Names of the classes.
        sheet: Images of the points.
        name: Identifier of the map, unique within its page.
    """
    places = _fit_square(np.array([(point.x, point.y) for point in points], dtype=np.float64).reshape(-1, 2))
    drawn = []
    for index, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        color, mark = choose_mark(point.code)
        title = escape(" | ".join([point.name, *point.lines]))
        drawn.append(
            f'<path class="point" tabindex="0" data-i="{index}" data-c="{point.code}" fill="{color}" '
            f'd="{_draw_mark(mark, x, y, _RADIUS)}"><title>{title}</title></path>'
        )
    codes = np.array([point.code for point in points], dtype=np.int64)
    # In SVG, y increases downwards.
    for code, (x, y) in place_labels(places * (1, -1), codes, 13.0).items():
        anchor = "start" if x < _EDGE else "end" if x > _SIDE - _EDGE else "middle"
        place = f'x="{x:.1f}" y="{max(-y, 8.0):.1f}" text-anchor="{anchor}"'
        drawn.append(f'<text class="name" data-c="{code}" {place}>{escape(classes[code])}</text>')
    legend = []
    for code in sorted({point.code for point in points}):
        color, mark = choose_mark(code)
        label = escape(classes[code] if code >= 0 else "none")
        legend.append(
            f'<button type="button" data-c="{code}" aria-pressed="false"><svg viewBox="0 0 10 10" aria-hidden="true">'
            f'<path fill="{color}" d="{_draw_mark(mark, 5, 5, 4.5)}"/></svg>{label}</button>'
        )
    items = [{"name": point.name, "lines": list(point.lines), "tile": point.tile if sheet else -1} for point in points]
    background = f"background-image:url(data:image/png;base64,{base64.b64encode(sheet.png).decode()})" if sheet else ""
    shape = {"side": sheet.side, "columns": sheet.columns, "width": sheet.side * sheet.columns} if sheet else {}
    arguments = f"{_to_script(name)}), {_to_script(items)}, {_to_script(shape)}"
    return (
        f"<style>{read_asset('hover_map.css')}</style>"
        f'<div class="hover-map" id="{escape(name)}">'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" role="img" aria-label="Map of {len(points)} structures">{"".join(drawn)}</svg>'
        f'<div class="tip"><div class="crop" style="{background}"></div><span></span></div>'
        f'<div class="legend">{"".join(legend)}</div></div>'
        f"<script>{read_asset('hover_map.js')}(document.getElementById({arguments});</script>"
    )


def _fit_square(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale points to the square of the drawing, with the same factor for both axes and y upwards."""
    if not len(points):
        return points
    low, high = points.min(axis=0), points.max(axis=0)
    factor = (_SIDE - 2 * _MARGIN) / max(float((high - low).max()), 1e-12)
    placed = (points - (low + high) / 2) * factor
    return np.asarray(placed * (1, -1) + _SIDE / 2)


def _draw_mark(mark: str, x: float, y: float, r: float) -> str:
    """Return the SVG path of a marker centred at a point."""
    if mark == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "triangle": ((0, -1.15), (1.05, 0.8), (-1.05, 0.8)),
        "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
        "down": ((0, 1.15), (1.05, -0.8), (-1.05, -0.8)),
        "plus": _repeat_corner((-0.4, 1.15), (0.4, 1.15), (0.4, 0.4)),
        "cross": _repeat_corner((0.0, 0.55), (0.6, 1.15), (1.15, 0.6)),
        "star": tuple(
            (float(reach * np.sin(angle)), float(-reach * np.cos(angle)))
            for reach, angle in zip((1.35, 0.6) * 5, np.arange(10) * np.pi / 5, strict=True)
        ),
    }[mark]
    return "M" + "L".join(f"{x + dx * r:.1f} {y + dy * r:.1f}" for dx, dy in corners) + "z"


def _repeat_corner(*corner: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Complete the corners of a marker with fourfold symmetry from those of one quarter."""
    turned = list(corner)
    for _ in range(3):
        turned += [(y, -x) for x, y in turned[-len(corner) :]]
    return tuple(turned)


def _to_script(value: object) -> str:
    """Encode a value as a JavaScript literal; "<" is escaped, so that a name cannot close the script or open a comment."""
    return json.dumps(value).replace("<", "\\u003c")
