"""A self-contained HTML page from a title, a lead and sections of blocks: nothing is loaded from elsewhere, ever.

Text, captions and verdicts may hold `code` in backticks and **emphasis**; everything else is escaped. The page forbids
its reader's browser to fetch anything (Content-Security-Policy), so that it stays whole in a mail or an archive.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dagman.reports.style import DPI

Level = Literal["ok", "warn", "bad"]

_INTERVAL = re.compile(r"([+−-]?[\d.]+) (\([^()]+ to [^()]+\))")


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by empty lines."""

    text: str

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs, none of them empty."""
        return [part for part in re.split(r"\n\s*\n", self.text.strip()) if part]


@dataclass(frozen=True)
class Listing:
    """Items, one below the other."""

    items: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A picture: PNG bytes, or SVG markup as a string; a caption that says what is seen; `alt` for those who cannot see it.

    `scale` enlarges a PNG of few pixels.
    """

    image: bytes | str = field(repr=False)
    caption: str
    alt: str
    scale: float = 1.0

    @property
    def source(self) -> str:
        """The picture as a data URI; an SVG as an image runs no script."""
        kind, data = ("png", self.image) if isinstance(self.image, bytes) else ("svg+xml", self.image.encode())
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    @property
    def width(self) -> int | None:
        """Width of a PNG on the page in CSS pixels (96 an inch), from its header; None lets the browser choose."""
        if isinstance(self.image, str) or len(self.image) < 24:
            return None
        return round(int.from_bytes(self.image[16:20]) * 96 / DPI * self.scale)


@dataclass(frozen=True)
class FigureGrid:
    """Figures side by side where the screen is wide enough; narrow ones more of them."""

    figures: Sequence[Figure]
    narrow: bool = False


@dataclass(frozen=True)
class DataTable:
    """Rows under named columns; numbers are shown with four significant digits, None and NaN as a dash."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers alone, and are aligned to the right."""
        return [all(isinstance(row[i], int | float | None) for row in self.rows) for i in range(len(self.columns))]


@dataclass(frozen=True)
class Verdict:
    """One plain sentence with its level: "ok", "warn" or "bad"."""

    level: Level
    text: str


@dataclass(frozen=True)
class Embedded:
    """Trusted HTML with its own inline scripts, such as a plot one can hover over; it loads nothing either."""

    html: str = field(repr=False)
    caption: str = ""


Block = Text | Listing | Figure | FigureGrid | DataTable | Verdict | Embedded


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The heading's address in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render_page(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """The whole page as HTML: title, lead paragraph, table of contents, sections.

    Sections without blocks are left out.
    """
    filled = [section for section in sections if section.blocks]
    scripted = any(isinstance(block, Embedded) for section in filled for block in section.blocks)
    page = _environment().get_template("page.html.j2")
    return page.render(title=title, lead=lead, sections=filled, footer=footer, scripted=scripted)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dagman.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = mark_inline
    environment.filters["cell"] = mark_cell
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    return environment


def mark_inline(text: str) -> Markup:
    """Escaped text with `code`, **emphasis** and powers (64^3) as HTML."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    marked = re.sub(r"\^(\d)", r"<sup>\1</sup>", marked)
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", marked))


def mark_cell(value: Any) -> Markup:
    """A table's cell as HTML; "0.71 (0.60 to 0.80)" is broken before its interval or nowhere."""
    text = format_cell(value)
    if match := _INTERVAL.fullmatch(text):
        return Markup('{} <span class="interval">{}</span>').format(*match.groups())
    return escape(text)


def format_cell(value: Any) -> str:
    """What a table shows of a value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(format_cell(part) for part in value)
    return str(value)
