"""A map one can hover over: each point shows its crop, name, patient and class. Inline SVG and a little script, no library."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from dagman.reports.figures.scatter import choose_mark

_SIDE = 640
_MARGIN = 14
_RADIUS = 4.5

_STYLE = """
.hover-map { position: relative; max-width: 820px; }
.hover-map svg { width: 100%; height: auto; background: #fff; border: 1px solid #d9e0e6; border-radius: 4px; }
.hover-map .point { cursor: pointer; opacity: .85; }
.hover-map .point:hover, .hover-map .point:focus { opacity: 1; stroke: #1b2733; stroke-width: 1.6; outline: none; }
.hover-map .dim { opacity: .08; }
.hover-map .tip { position: absolute; display: none; z-index: 2; pointer-events: none; padding: 6px; background: #fff;
  border: 1px solid #5b6b7a; border-radius: 4px; font-size: .82rem; line-height: 1.35; box-shadow: 0 2px 8px rgba(0,0,0,.25); }
.hover-map .tip b { display: block; }
.hover-map .crop { margin-bottom: 4px; image-rendering: auto; transform-origin: 0 0; }
.hover-map .legend { margin: .5rem 0 0; font-size: .85rem; }
.hover-map .legend button { border: 1px solid #d9e0e6; background: #fff; color: inherit; font: inherit; margin: 0 .3rem .3rem 0;
  padding: .1rem .5rem; border-radius: 3px; cursor: pointer; }
.hover-map .legend button[aria-pressed=true] { background: #e8edf2; border-color: #5b6b7a; }
.hover-map .legend svg { width: 10px; height: 10px; border: 0; margin-right: .35rem; }
"""

_SCRIPT = """
(function (root, items, sheet) {
  const tip = root.querySelector('.tip'), crop = tip.querySelector('.crop'), text = tip.querySelector('span');
  const points = [...root.querySelectorAll('.point')], zoom = 2;
  let chosen = null;
  function show(point) {
    const item = items[+point.dataset.i], box = root.getBoundingClientRect(), at = point.getBoundingClientRect();
    text.replaceChildren();
    const name = document.createElement('b');
    name.textContent = item.name;
    text.append(name, ...item.lines.flatMap(line => [document.createTextNode(line), document.createElement('br')]));
    crop.style.display = item.tile < 0 ? 'none' : 'block';
    if (item.tile >= 0) {
      const side = sheet.side * zoom, column = item.tile % sheet.columns, row = Math.floor(item.tile / sheet.columns);
      crop.style.width = crop.style.height = side + 'px';
      crop.style.backgroundSize = (sheet.width * zoom) + 'px auto';
      crop.style.backgroundPosition = (-column * side) + 'px ' + (-row * side) + 'px';
    }
    tip.style.display = 'block';
    const left = at.left - box.left + 14, top = at.top - box.top + 14;
    tip.style.left = Math.max(0, Math.min(left, box.width - tip.offsetWidth)) + 'px';
    tip.style.top = (top + tip.offsetHeight > box.height ? Math.max(0, top - tip.offsetHeight - 28) : top) + 'px';
  }
  function hide() { tip.style.display = 'none'; }
  for (const point of points) {
    point.addEventListener('mouseenter', () => show(point));
    point.addEventListener('focus', () => show(point));
    point.addEventListener('click', () => show(point));
    point.addEventListener('mouseleave', hide);
    point.addEventListener('blur', hide);
  }
  for (const button of root.querySelectorAll('.legend button')) {
    button.addEventListener('click', () => {
      chosen = chosen === button.dataset.c ? null : button.dataset.c;
      for (const other of root.querySelectorAll('.legend button')) other.setAttribute('aria-pressed', other.dataset.c === chosen);
      for (const point of points) point.classList.toggle('dim', chosen !== null && point.dataset.c !== chosen);
    });
  }
})
"""


@dataclass(frozen=True, kw_only=True)
class MapPoint:
    """One point: where, of which class (-1: none), its text, and its tile in the sheet (-1: none)."""

    x: float
    y: float
    code: int
    name: str
    lines: tuple[str, ...]
    tile: int = -1


@dataclass(frozen=True, kw_only=True)
class TileSheet:
    """PNG bytes of square tiles in rows of `columns`, `side` pixels each."""

    png: bytes
    side: int
    columns: int


def render_hover_map(points: Sequence[MapPoint], classes: Sequence[str], sheet: TileSheet | None, *, name: str) -> str:
    """HTML of one map; `name` is unique in its page. Without script, a point's title still says what it is."""
    places = _fit_square(np.array([(point.x, point.y) for point in points], dtype=np.float64).reshape(-1, 2))
    drawn = []
    for index, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        color, mark = choose_mark(point.code)
        title = escape(" | ".join([point.name, *point.lines]))
        drawn.append(
            f'<path class="point" tabindex="0" data-i="{index}" data-c="{point.code}" fill="{color}" '
            f'd="{_draw_mark(mark, x, y, _RADIUS)}"><title>{title}</title></path>'
        )
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
    return (
        f"<style>{_STYLE}</style>"
        f'<div class="hover-map" id="{escape(name)}">'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" role="img" aria-label="Map of {len(points)} structures">{"".join(drawn)}</svg>'
        f'<div class="tip"><div class="crop" style="{background}"></div><span></span></div>'
        f'<div class="legend">{"".join(legend)}</div></div>'
        f"<script>{_SCRIPT}(document.getElementById({_to_script(name)}), {_to_script(items)}, {_to_script(shape)});</script>"
    )


def _fit_square(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points in the drawing's square, both axes by one factor, y upwards."""
    if not len(points):
        return points
    low, high = points.min(axis=0), points.max(axis=0)
    factor = (_SIDE - 2 * _MARGIN) / max(float((high - low).max()), 1e-12)
    placed = (points - (low + high) / 2) * factor
    return np.asarray(placed * (1, -1) + _SIDE / 2)


def _draw_mark(mark: str, x: float, y: float, r: float) -> str:
    """The path of a mark around a point."""
    if mark == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "triangle": ((0, -1.15), (1.05, 0.8), (-1.05, 0.8)),
        "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    }[mark]
    return "M" + "L".join(f"{x + dx * r:.1f} {y + dy * r:.1f}" for dx, dy in corners) + "z"


def _to_script(value: object) -> str:
    """A value as a script's literal; a name that closes the script or opens a comment stays a name."""
    return json.dumps(value).replace("<", "\\u003c")
