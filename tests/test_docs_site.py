"""Proves that the documentation site builds without a warning, and has every documented package; needs the extra `docs`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_builds_and_names_what_is_public(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    api = {page.parent.name: page.read_text(encoding="utf-8") for page in (tmp_path / "site" / "reference").glob("*/index.html")}
    for page, name in (
        ("dagman", "dagman.encoder.loading.load_encoder"),
        ("method", "dagman.method.step.student_losses"),
        ("evaluation", "dagman.evaluation.splits"),
        ("testing", "dagman.testing.write_tiny_encoder"),
    ):
        assert f'id="{name}"' in api[page], name
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]+)", page.read_text(encoding="utf-8"))
        assert fetched == [], page


def test_every_package_has_a_page_of_its_api():
    packages = {path.parent.name for path in (_ROOT / "src" / "dagman").glob("*/__init__.py")} - {"cli"}
    text = "\n".join(page.read_text(encoding="utf-8") for page in (_ROOT / "docs" / "reference").glob("*.md"))
    named = set(re.findall(r"^::: dagman\.(\w+)$", text, re.MULTILINE))
    assert packages - named == set()
