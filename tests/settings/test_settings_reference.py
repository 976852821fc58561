"""`docs/settings.md` is made from the settings' own sentences, names every key, and is current."""

from __future__ import annotations

from pathlib import Path

from dagman.settings.presets import list_fields
from dagman.settings.reference import render_reference

_PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_current():
    assert _PAGE.read_text(encoding="utf-8") == render_reference(), "run `make docs`"


def test_every_key_has_a_sentence():
    rows = [line for line in render_reference().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list_fields()
    assert all(len(row.split("|")[3].split()) >= 2 for row in rows)
