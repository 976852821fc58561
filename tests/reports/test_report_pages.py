"""Proves that a page is whole in itself, says what it is given, and lets no text become markup."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from dagman.reports.page import (
    DataTable,
    Embedded,
    Figure,
    FigureGrid,
    Section,
    Text,
    Verdict,
    format_cell,
    mark_inline,
    render_page,
)

_VOID = {"meta", "img", "br", "hr", "link", "input"}


class _Outline(HTMLParser):
    """Follows open elements, and fails where one is closed that was not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _page(*blocks, lead="What it is.") -> str:
    return render_page("A page", lead, [Section("First things", blocks)], footer="Made here.")


def test_every_block_is_shown_in_a_page_that_parses_and_whose_contents_lead_somewhere():
    picture = Figure(b"\x89PNG", "what is **seen**", "a picture")
    html = _page(
        Text("one\n\ntwo"),
        Verdict("warn", "look here"),
        picture,
        FigureGrid([picture, picture]),
        DataTable(["name", "value"], [["a", 0.123456], ["b", None]], "some numbers"),
        Embedded("<b>plot</b>", "hover"),
    )
    outline = _Outline()
    outline.feed(html)
    assert outline.open == []
    assert outline.links == ["#first-things"]
    assert "first-things" in outline.ids
    for part in (
        "<p>one</p>",
        "<p>two</p>",
        "look here",
        "<strong>seen</strong>",
        "0.1235",
        "some numbers",
        "<b>plot</b>",
        "hover",
        "Made here.",
    ):
        assert part in html
    assert html.count('alt="a picture"') == 3


def test_a_page_loads_nothing():
    html = _page(Figure(b"\x89PNG", "", "a"), Figure("<svg xmlns='http://www.w3.org/2000/svg'/>", "", "b"))
    assert set(re.findall(r'src="([^"]{5})', html)) == {"data:"}
    assert "default-src 'none'" in html
    assert "script" not in html
    assert not re.search(r"url\(|@import|<link|https?://", html)


def test_scripts_are_allowed_where_a_plot_needs_them_and_nowhere_else():
    assert "script-src 'unsafe-inline'" in _page(Embedded("<script>1</script>"))


def test_text_never_becomes_markup():
    html = _page(Text("<script>alert(1)</script>"), DataTable(["<i>"], [["<b>"]]), Figure(b"", "<u>", '"><script>'), lead="<h1>")
    assert "<script>" not in html
    assert "&lt;i&gt;" in html
    assert "&lt;b&gt;" in html


def test_a_picture_is_kept_byte_for_byte():
    found = re.search(r'src="data:image/png;base64,([^"]*)"', _page(Figure(b"\x00\xff bytes", "", "a")))
    assert found
    assert base64.b64decode(found[1]) == b"\x00\xff bytes"


def test_sections_without_blocks_are_left_out():
    html = render_page("A page", "", [Section("Empty", []), Section("Full", [Text("x")])])
    assert "Empty" not in html
    assert "Full" in html


def test_a_table_without_rows_is_a_heading():
    assert "<th" in _page(DataTable(["a"], []))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (float("nan"), "–"), (True, "yes"), (3, "3"), (0.000123456, "0.0001235"), ((2, 0.5), "2, 0.5"), ("x", "x")],
)
def test_cells_are_short(value, shown):
    assert format_cell(value) == shown


def test_code_and_emphasis_are_the_only_markup():
    assert mark_inline("`a<b` **c** *d*") == "<code>a&lt;b</code> <strong>c</strong> *d*"
