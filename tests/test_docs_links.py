"""Proves that every relative link of the documentation leads to a file, and to a heading where it names one."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

_ROOT = Path(__file__).parents[1]
_PAGES = [*sorted(_ROOT.glob("*.md")), *sorted((_ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")


def _read(page: Path) -> str:
    """The text of a page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def _list_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the hosting sites make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *#*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _find_broken(page: Path) -> list[str]:
    broken = []
    for link in _LINK.findall(_read(page)):
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in _list_anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_of_the_documentation_lead_somewhere(page: Path):
    assert _find_broken(page) == []


def test_a_broken_link_would_be_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# One Two\n[a](#one-two) [b](#three) [c](other.md) [d](https://example.org) `[e](f)` ![g](<h i.png> "t")\n')
    assert _find_broken(page) == ["#three", "other.md"]


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [_ROOT / "README.md", _ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        waiting += [page.parent / unquote(link).partition("#")[0] for link in _LINK.findall(_read(page)) if ":" not in link]
    written = {path.resolve() for path in (_ROOT / "docs").rglob("*.md") if path.parent.name != "reference"}
    assert {path.relative_to(_ROOT).as_posix() for path in written - reached} == set()
