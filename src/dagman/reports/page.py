"""Build a self-contained HTML page from a title, a lead paragraph and sections of blocks.

Text, captions and verdicts may contain `code` in backticks and **emphasis**; everything else is escaped. A
Content-Security-Policy forbids the browser to load anything, so a page works the same from an e-mail or an archive.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dagman.reports.assets import read_asset
from dagman.reports.style import DPI
from dagman.reports.volumes import Volume, VolumeGrid, list_window_filters

Level = Literal["ok", "early", "warn", "bad"]

_LONG_WORD = 20
"""Characters from which a word in a table may be broken on a narrow page."""
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_NUMBER = re.compile(r"[+−-]?\d+(\.\d+)?|∞|–")
_WHOLE = re.compile(r"(?<![\w-])(?:--[a-z][a-z-]+|P-[0-9a-f]{16}|-?\d[\d.]*(?: x \d[\d.]*){1,2})(?![\w-])")
_PROSE = 60
"""Characters from which a cell counts as prose, and gets a wider column."""
_INTERVAL = re.compile(r"([+−-]?[\d.]+) (\([^()]+ to [^()]+\))")


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by empty lines."""

    text: str

    @property
    def paragraphs(self) -> list[str]:
        """The non-empty paragraphs."""
        return [part for part in re.split(r"\n\s*\n", self.text.strip()) if part]


@dataclass(frozen=True)
class Listing:
    """A bulleted list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Links:
    """A sentence followed by links to files next to the page, as (name, address) pairs."""

    text: str
    targets: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A picture with a caption.

    Attributes:
        image: PNG bytes, or SVG markup as a string.
        caption: What the picture shows.
        alt: Description for readers who cannot see it.
        scale: Magnification of a small PNG.
        kind: How it is shown on a dark page: colours of a "chart" are inverted, "slices" of a scan are not. "slices windowed",
            in the grey levels of `volumes.list_levels`, can be shown in several windows.
    """

    image: bytes | str = field(repr=False)
    caption: str
    alt: str
    scale: float = 1.0
    kind: Literal["chart", "slices", "slices windowed"] = "chart"

    @property
    def source(self) -> str:
        """The picture as a data URI; scripts in an SVG do not run when it is used as an image."""
        kind, data = ("png", self.image) if isinstance(self.image, bytes) else ("svg+xml", self.image.encode())
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    @property
    def width(self) -> int | None:
        """Width of a PNG on the page in CSS pixels (96 per inch), from its header; None lets the browser decide."""
        if isinstance(self.image, str) or len(self.image) < 24:
            return None
        return round(int.from_bytes(self.image[16:20]) * 96 / DPI * self.scale)


@dataclass(frozen=True)
class FigureGrid:
    """Figures side by side if the screen is wide enough; `narrow` puts more of them in a row."""

    figures: Sequence[Figure]
    narrow: bool = False


@dataclass(frozen=True)
class DataTable:
    """A table with named columns; None and NaN are shown as a dash.

    Fractions are shown with four significant digits. Those of one column have the same number of decimals, unless a small value
    would lose its digits.

    Attributes:
        columns: Names of the columns.
        rows: Cells, row by row.
        caption: Text below the table.
        filtered: Whether the page has a search field that filters the rows and the small pictures.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    filtered: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Whether each column contains only numbers (or strings of numbers), and is aligned to the right."""
        return [all(_is_number(row[i]) for row in self.rows) for i in range(len(self.columns))]

    @property
    def cells(self) -> list[list[Any]]:
        """The rows, with the fractions of each column formatted to the same number of decimals."""
        if not self.rows:
            return []
        return [list(row) for row in zip(*map(_even_decimals, zip(*self.rows, strict=True)), strict=True)]


@dataclass(frozen=True)
class Verdict:
    """A sentence with its level: "ok", "early" (too early to judge), "warn" or "bad"."""

    level: Level
    text: str


@dataclass(frozen=True)
class Embedded:
    """Trusted HTML with inline scripts, such as an interactive plot; it must not load anything either."""

    html: str = field(repr=False)
    caption: str = ""

    @property
    def scripts(self) -> list[str]:
        """Sources of its inline scripts."""
        return _SCRIPT.findall(self.html)


Block = Text | Listing | Links | Figure | FigureGrid | Volume | VolumeGrid | DataTable | Verdict | Embedded


@dataclass(frozen=True)
class Section:
    """A heading with the blocks below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The fragment identifier of the heading."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def figures(self) -> list[Figure]:
        """All figures of the section, including those of grids."""
        return [
            figure
            for block in self.blocks
            for figure in ([block] if isinstance(block, Figure) else block.figures if isinstance(block, FigureGrid) else [])
        ]

    @property
    def is_pictured(self) -> bool:
        """Whether the section contains anything to enlarge or filter, for which the page needs its script."""
        filtered = any(isinstance(block, DataTable) and block.filtered for block in self.blocks)
        return filtered or bool(self.figures) or any(isinstance(block, Volume | VolumeGrid) for block in self.blocks)

    @property
    def is_windowed(self) -> bool:
        """Whether the section contains figures that can be shown in several windows."""
        return any("windowed" in figure.kind for figure in self.figures)


def render_page(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """Render a page as HTML: title, lead paragraph, table of contents, sections.

    Sections without blocks are skipped. Only the page's own scripts may run; each is allowed by its hash.
    """
    filled = [section for section in sections if section.blocks]
    pictured = any(section.is_pictured for section in filled)
    script = read_asset("pictures.js")
    own = [script] if pictured else []
    own += [text for section in filled for block in section.blocks if isinstance(block, Embedded) for text in block.scripts]
    page = _environment().get_template("page.html.j2")
    return page.render(
        title=title,
        lead=lead,
        sections=filled,
        footer=footer,
        pictured=pictured,
        script=Markup(script),
        scripts=Markup(" ").join(allow_script(text) for text in dict.fromkeys(own)),
        filters=list_window_filters() if any(section.is_windowed for section in filled) else {},
    )


def allow_script(text: str) -> Markup:
    """Return the Content-Security-Policy source that allows an inline script: the SHA-256 of its text."""
    return Markup("'sha256-{}'").format(base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dagman.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = mark_inline
    environment.filters["cell"] = mark_cell
    environment.tests["unbreakable"] = lambda value: any(len(word) > _LONG_WORD for word in format_cell(value).split())
    environment.tests["prose"] = lambda value: len(format_cell(value)) > _PROSE
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    return environment


def _even_decimals(column: Sequence[Any]) -> Sequence[Any]:
    """Format fractions with the decimals that give the largest four significant digits.

    Columns of anything else, or of values of very different magnitude, are returned unchanged.
    """
    known = [abs(value) for value in column if isinstance(value, float) and math.isfinite(value)]
    if len(known) < 2 or not all(value is None or isinstance(value, float) for value in column) or not max(known):
        return column
    decimals = max(0, 3 - math.floor(math.log10(max(known))))
    if all(value.is_integer() for value in known) or any(0 < value < 10 ** (1 - decimals) for value in known):
        return column
    return [f"{value:.{decimals}f}" if value is not None and math.isfinite(value) else value for value in column]


def _is_number(value: Any) -> bool:
    return bool(_NUMBER.fullmatch(value)) if isinstance(value, str) else isinstance(value, int | float | None)


def mark_inline(text: str) -> Markup:
    """Convert text with `code`, **emphasis** and powers (64^3) to HTML; everything else is escaped."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", _keep_whole(str(escape(text))))
    marked = re.sub(r"\^(\d)", r"<sup>\1</sup>", marked)
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", marked))


def _keep_whole(text: str) -> str:
    """Prevent line breaks within options (--modality), pseudonyms and sizes; expects escaped text."""
    return _WHOLE.sub(r'<span class="whole">\g<0></span>', text)


def mark_cell(value: Any) -> Markup:
    """Convert a table cell to HTML; "0.71 (0.60 to 0.80)" may be broken only before the interval."""
    text = format_cell(value)
    if match := _INTERVAL.fullmatch(text):
        return Markup('{} <span class="interval">{}</span>').format(*match.groups())
    return Markup(_keep_whole(str(escape(text))))


def format_cell(value: Any) -> str:
    """Format a value for a table."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(format_cell(part) for part in value)
    return str(value)
