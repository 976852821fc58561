"""Proves that a page is whole in itself, says what it is given, and lets no text become markup."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

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
from dagman.reports.volumes import MOST_VOXELS, Layer, Volume, choose_steps, shrink_volume

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


def _volume() -> Volume:
    voxels = np.linspace(-1350, 1350, 12 * 10 * 8).reshape(12, 10, 8)
    return Volume(
        voxels=voxels,
        spacing=(1, 1, 2),
        still=b"\x89PNG",
        caption="a crop",
        alt="slices",
        title="a </script> crop",
        window=(-160, 240),
        hounsfield=True,
        layers=[Layer(codes=(voxels > 0).astype(np.uint8), names=["</script>"], colors=["#00ff00"])],
        attention=np.linspace(0.9, 1.2, 24, dtype=np.float32).reshape(4, 3, 2),
        within=[(0, 12), (0, 10.5), (0, 8)],
    )


def _read_grid(source: str, shape: list[int]) -> np.ndarray:
    x, y, z = shape
    rows = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    return rows.reshape(z, y, x).transpose(2, 1, 0)


def _scripts(html: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", html, re.DOTALL)


def _allow(scripts: list[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    return " ".join(f"'sha256-{text}'" for text in hashes)


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
    html = _page(Figure(b"\x89PNG", "", "a"), Figure("<svg xmlns='http://www.w3.org/2000/svg'/>", "", "b"), _volume())
    assert set(re.findall(r'src="([^"]{5})', html)) == {"data:"}
    assert "default-src 'none'" in html
    assert re.findall(r"script-src ([^;\"]*)", html) == [_allow(_scripts(html))]
    assert not re.search(r"url\((?!#)|@import|<link|https?://", html)


def test_scripts_run_where_a_block_brings_them_each_by_its_hash_and_nowhere_else():
    assert "script" not in _page(Text("words"), DataTable(["a"], [[1]]))
    html = _page(Embedded("<b>plot</b><script>draw()</script>"))
    assert f"script-src {_allow(['draw()'])}" in html
    assert "script-src 'unsafe" not in html


def test_a_crop_travels_in_the_page_to_the_nearest_grey_level_with_its_layers():
    volume = _volume()
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', _page(volume))
    held = json.loads(text)
    table, levels = np.array(held["table"]), _read_grid(held["levels"], held["shape"])
    assert len(table) == 256
    assert (np.diff(table) > 0).all()
    within = (volume.voxels >= table[0]) & (volume.voxels <= table[-1])
    assert np.abs(table[levels] - volume.voxels)[within].max() <= 12
    soft = np.abs(volume.voxels) < 150
    assert np.abs(table[levels] - volume.voxels)[soft].max() <= 2.1
    assert (_read_grid(held["layers"][0]["codes"], held["layers"][0]["shape"]) == volume.layers[0].codes).all()
    heat = held["attention"]
    relative = 1 + (_read_grid(heat["values"], heat["shape"]).astype(float) - 127) / 127 * heat["reach"]
    assert relative == pytest.approx(volume.attention, abs=heat["reach"] / 200)
    assert held["within"] == [[0, 12], [0, 10.5], [0, 8]]


def test_a_large_crop_is_averaged_down_along_its_finest_axes_first():
    assert choose_steps((64, 64, 64), (1, 1, 1)) == (1, 1, 1)
    steps = choose_steps((512, 512, 40), (0.7, 0.7, 5.0))
    assert steps[2] == 1
    assert 512 // steps[0] * (512 // steps[1]) * 40 <= MOST_VOXELS
    shrunk = shrink_volume(np.arange(24, dtype=float).reshape(4, 3, 2), (2, 1, 2))
    assert shrunk.tolist() == [[[3.5], [5.5], [7.5]], [[15.5], [17.5], [19.5]]]


def test_text_never_becomes_markup():
    html = _page(Text("<script>alert(1)</script>"), DataTable(["<i>"], [["<b>"]]), Figure(b"", "<u>", '"><script>'), lead="<h1>")
    assert html.count("<script>") == 1, "the page's own"
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


def test_fractions_of_a_column_have_the_same_decimals_unless_one_would_be_lost():
    rows = [[0.0056, 4.14, 3.0, 0.3, 1.5], [0.01276, 18.0, None, 1e-6, "n/a"], [float("nan"), 2.065, 7.0, 0.2, 2.25]]
    cells = DataTable(["a", "b", "c", "d", "e"], rows).cells
    assert [[format_cell(value) for value in column] for column in zip(*cells, strict=True)] == [
        ["0.00560", "0.01276", "–"],
        ["4.14", "18.00", "2.06"],
        ["3", "–", "7"],
        ["0.3", "1e-06", "0.2"],
        ["1.5", "n/a", "2.25"],
    ]
    assert DataTable(["a"], []).cells == []


def test_pictures_as_wide_as_the_page_are_read_on_a_telephone_whatever_they_show():
    wide = b"\x89PNG" + bytes(12) + (2000).to_bytes(4, "big") + bytes(4)
    for kind in ("chart", "slices"):
        assert f'class="{kind} wide"' in _page(Figure(wide, "c", "a", kind=kind))
        assert f'class="{kind}"' in _page(FigureGrid([Figure(wide, "c", "a", kind=kind)], narrow=True))
