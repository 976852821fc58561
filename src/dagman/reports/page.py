"""A self-contained HTML page from a title, a lead and sections of blocks: nothing is loaded from elsewhere, ever.

Text, captions and verdicts may hold `code` in backticks and **emphasis**; everything else is escaped. The page forbids
its reader's browser to fetch anything (Content-Security-Policy), so that it stays whole in a mail or an archive.
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
"""Letters of a word that a table may break, where the page is narrow."""
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_NUMBER = re.compile(r"[+−-]?\d+(\.\d+)?|∞|–")
_WHOLE = re.compile(r"(?<![\w-])(?:--[a-z][a-z-]+|P-[0-9a-f]{16}|-?\d[\d.]*(?: x \d[\d.]*){1,2})(?![\w-])")
_PROSE = 60
"""Letters from which a cell is read as a sentence, and is not to be squeezed."""
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
class Links:
    """A sentence, and what it leads to in files beside the page: names with their addresses."""

    text: str
    targets: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A picture: PNG bytes, or SVG markup as a string; a caption that says what is seen; `alt` for those who cannot see it.

    `scale` enlarges a PNG of few pixels. `kind` decides how it follows a dark page: a "chart" is turned over, "slices" of a scan
    stay as they are, and "slices windowed", in the grey levels of `volumes.list_levels`, can be read in several windows.
    """

    image: bytes | str = field(repr=False)
    caption: str
    alt: str
    scale: float = 1.0
    kind: Literal["chart", "slices", "slices windowed"] = "chart"

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
    """Rows under named columns; None and NaN are shown as a dash.

    Fractions are shown with four significant digits, those of one column with the same decimals where none of them is lost by it.

    filtered: whether the page offers to show the rows, and small pictures, that hold certain words alone.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    filtered: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers alone, as such or written, and are aligned to the right."""
        return [all(_is_number(row[i]) for row in self.rows) for i in range(len(self.columns))]

    @property
    def cells(self) -> list[list[Any]]:
        """The rows, with the fractions of a column written to the same number of decimals."""
        if not self.rows:
            return []
        return [list(row) for row in zip(*map(_even_decimals, zip(*self.rows, strict=True)), strict=True)]


@dataclass(frozen=True)
class Verdict:
    """One plain sentence with its level: "ok", "early" (nothing is known yet), "warn" or "bad"."""

    level: Level
    text: str


@dataclass(frozen=True)
class Embedded:
    """Trusted HTML with its own inline scripts, such as a plot one can hover over; it loads nothing either."""

    html: str = field(repr=False)
    caption: str = ""

    @property
    def scripts(self) -> list[str]:
        """The texts of its scripts."""
        return _SCRIPT.findall(self.html)


Block = Text | Listing | Links | Figure | FigureGrid | Volume | VolumeGrid | DataTable | Verdict | Embedded


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The heading's address in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def figures(self) -> list[Figure]:
        """Its still pictures."""
        return [
            figure
            for block in self.blocks
            for figure in ([block] if isinstance(block, Figure) else block.figures if isinstance(block, FigureGrid) else [])
        ]

    @property
    def is_pictured(self) -> bool:
        """Whether anything in it can be enlarged or filtered."""
        filtered = any(isinstance(block, DataTable) and block.filtered for block in self.blocks)
        return filtered or bool(self.figures) or any(isinstance(block, Volume | VolumeGrid) for block in self.blocks)

    @property
    def is_windowed(self) -> bool:
        """Whether still pictures in it can be read in several windows."""
        return any("windowed" in figure.kind for figure in self.figures)


def render_page(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """The whole page as HTML: title, lead paragraph, table of contents, sections.

    Sections without blocks are left out. Of scripts, those of the page's own blocks alone may run, each by its hash.
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
    """A script as a Content-Security-Policy names it."""
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
    """A column of fractions with four significant digits for the largest; any other column, or one of many magnitudes, as it is."""
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
    """Escaped text with `code`, **emphasis** and powers (64^3) as HTML."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", _keep_whole(str(escape(text))))
    marked = re.sub(r"\^(\d)", r"<sup>\1</sup>", marked)
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", marked))


def _keep_whole(text: str) -> str:
    """Escaped text whose options (--modality) and pseudonyms are not broken at their hyphens."""
    return _WHOLE.sub(r'<span class="whole">\g<0></span>', text)


def mark_cell(value: Any) -> Markup:
    """A table's cell as HTML; "0.71 (0.60 to 0.80)" is broken before its interval or nowhere."""
    text = format_cell(value)
    if match := _INTERVAL.fullmatch(text):
        return Markup('{} <span class="interval">{}</span>').format(*match.groups())
    return Markup(_keep_whole(str(escape(text))))


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
