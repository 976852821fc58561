"""`dagman inspect` on many scans: whole lines in a pipe, and a page that a browser still opens."""

from __future__ import annotations

import numpy as np
from typer.testing import CliRunner

from dagman.cli.scans import inspect
from dagman.reports import inspection_page
from dagman.scans.inspection import Inspection


def _rows(count: int) -> list[Inspection]:
    picture = np.zeros((8, 8), np.uint8)
    return [Inspection(source=f"{'folder/' * 30}{index}.nii", accepted=True, picture=picture) for index in range(count)]


def test_a_row_is_one_line_in_a_pipe_however_long_its_path(monkeypatch, tmp_path):
    monkeypatch.setattr(inspect, "_inspect_all", lambda *arguments, **options: _rows(5))
    (tmp_path / "a.nii").write_bytes(b"x")
    lines = CliRunner().invoke(inspect.app, [str(tmp_path)]).stdout.splitlines()
    assert lines[0].split() == ["source", "verdict", "modality", "size", "spacing_mm", "axes", "values", "reason"]
    assert [line.split()[:2] for line in lines[1:6]] == [[f"{'folder/' * 30}{index}.nii", "accepted"] for index in range(5)]
    assert lines[6] == "5 series of 1 patient can be used; 0 refused."


def test_a_page_shows_some_pictures_and_says_of_how_many(monkeypatch, tmp_path):
    monkeypatch.setattr(inspection_page, "MOST_PICTURES", 3)
    inspect._write_results(tmp_path, _rows(5), ["scans"])
    page = (tmp_path / "inspect.html").read_text()
    assert "The first 3 of 5 are shown." in page
    assert page.count("data:image/png") == 3
