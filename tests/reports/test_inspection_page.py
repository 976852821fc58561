"""Proves that the page of an inspection shows the worst first, by short names, with a word on every series."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dagman.reports.inspection_page import render_inspection, shorten_names, state_notes
from dagman.reports.volumes import list_levels
from dagman.scans.inspection import Inspection

_PICTURE = np.full((60, 40), 41, dtype=np.int16)
_ROWS = [
    Inspection(source="in/p1/ct.nii.gz", accepted=True, modality="CT", patient="one", picture=_PICTURE, spacing_mm=(1, 1, 3)),
    Inspection(source="in/p2/ct.nii.gz", accepted=True, modality="CT", notes=("thick slices",), picture=_PICTURE),
    Inspection(source="in/odd.mha", accepted=False, reason="holds no image"),
    Inspection(source="in/mr.nii", accepted=True, modality="MR", picture=_PICTURE, patient_from="assumed"),
]


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())


@pytest.fixture(scope="module")
def page() -> str:
    cells = ("format", "modality", "size", "spacing_mm", "axes", "values", "patient")

    def describe(row: Inspection) -> dict[str, str]:
        return {"verdict": "accepted" if row.accepted else "refused", **dict.fromkeys(cells, "x")}

    return render_inspection(_ROWS, describe, lead="3 series.", scans=["in"])


def test_the_summary_leads_and_rows_and_pictures_follow_the_worst_first(page):
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Summary", "Images, worst first", "All series, worst first"]
    assert "1 series of 4 cannot be used." in page
    assert "3 series can be used: 2 CT, 1 MR." in page
    parser = _Cells()
    parser.feed(page[page.index("<table") : page.index("</table>")])
    assert [row[0] for row in parser.rows] == ["series", "odd.mha", "p2/ct.nii.gz", "mr.nii", "p1/ct.nii.gz"]
    captions = re.findall(r"<figcaption><code>(.*?)</code>", page)
    assert captions == ["p2/ct.nii.gz", "mr.nii", "p1/ct.nii.gz"]


def test_every_series_has_a_note():
    assert [state_notes(row) for row in _ROWS] == [
        "no remarks",
        "thick slices",
        "holds no image",
        "names no patient: treated as a separate patient",
    ]


def test_ct_is_in_grey_levels_that_a_filter_of_the_page_can_window(page):
    (first, second, third) = re.findall(r'<img class="([^"]*)" src="data:image/png;base64,([^"]*)"', page)
    assert [kind for kind, _ in (first, second, third)] == ["slices windowed", "slices", "slices windowed"]
    grey = np.asarray(Image.open(io.BytesIO(b64decode(first[1]))))
    levels = list_levels(_PICTURE, hounsfield=True)
    assert levels[int(np.median(grey))] == pytest.approx(41, abs=2.1)
    tables = dict(re.findall(r'<filter id="window-([a-z-]*)".*?tableValues="([^"]*)"', page, re.DOTALL))
    assert set(tables) == {"lung", "soft-tissue", "bone"}
    soft = np.array(tables["soft-tissue"].split(), dtype=float)
    assert soft == pytest.approx(np.clip((levels + 160) / 400, 0, 1), abs=2e-3)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a/b/c.nii", "a/b/d.nii"], ["c.nii", "d.nii"]),
        (["a/x/c.nii", "b/x/c.nii", "b/y/c.nii"], ["a/x/c.nii", "b/x/c.nii", "y/c.nii"]),
        (["c.nii"], ["c.nii"]),
        (["dicom#1.2", "dicom#1.3"], ["dicom#1.2", "dicom#1.3"]),
        (["a/s#1.2.826.0.1.3680043.8.498.1111", "a/s#1.2.826.0.1.3680043.8.498.2222"], ["s#…498.1111", "s#…498.2222"]),
        ([], []),
    ],
)
def test_names_are_cut_to_what_sets_them_apart(sources, names):
    assert shorten_names(sources) == names
