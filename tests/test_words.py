"""Proves that help, docs and code use the field's words and plain sentences: a list of the words that are gone."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import Any

import pytest

from dagman.cli import application

_ROOT = Path(__file__).parents[1]
_SOURCE = sorted((_ROOT / "src" / "dagman").rglob("*.py"))

# What help must not have, with what to write.
_HELP = {
    r"^Of (?!the )": "a fragment: name the thing (Seed of ..., One or more of ...)",
    r"\bwithout one\b": "Default: ...",
    r"\b(say|says|said|tell|tells|told|look|looks|looked)\b": "report, check, follow-up, ...",
    r"\bis no\b": "is not a",
    r"\ba (row|step|core|class|item|nodule) a\b": "one ... per ...",
    r"\bthe last look\b": "the last follow-up",
    r"\bwhole road\b": "whole pipeline",
}


def _describe(name: str) -> list[tuple[str, str]]:
    """Every text of a command's help, and where it is."""
    texts: list[tuple[str, str]] = [(name, application.list_commands()[name])]

    def visit(command: Any, place: str) -> None:
        texts.append((place, command.help or ""))
        texts.extend((f"{place} {one.name}", one.help) for one in command.params if getattr(one, "help", None))
        for inner, child in getattr(command, "commands", {}).items():
            visit(child, f"{place} {inner}")

    visit(application.load_command(name), name)
    return texts


@pytest.mark.parametrize("name", application.list_commands())
def test_help_is_in_plain_sentences(name: str):
    wrong = [
        f"{place}: {text!r}: {instead}"
        for place, text in _describe(name)
        for pattern, instead in _HELP.items()
        if re.search(pattern, text)
    ]
    assert wrong == []


def test_help_begins_with_a_capital_or_with_values():
    texts = [(place, text) for name in application.list_commands() for place, text in _describe(name) if text]
    assert [f"{place}: {text}" for place, text in texts if not re.match(r"[A-Z]|[a-z0-9_]+[,:.=]|[a-z]+ \(", text)] == []


# Parts of names that code must not have, with what to write.
_NAMES = {
    "tell": "notify, describe, or on_event",
    "tells": "describe",
    "told": "what it holds: problem, sentences, notes",
    "said": "what it holds: notes, ranges, members",
    "say": "state, format",
    "contender": "candidate",
    "contenders": "candidates",
    "advice": "remedy",
    "goal": "target",
    "goals": "targets",
    "watched": "monitor",
    "keeper": "what it keeps",
    "chances": "probabilities",
    "weigh": "weight",
    "arithmetic": "summary, precision",
}


def _split(name: str) -> set[str]:
    return set(name.lower().strip("_").split("_"))


def test_names_are_the_fields_words():
    wrong = []
    for path in _SOURCE:
        text = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            attribute = token.line[: token.start[1]].endswith(".")  # file.tell() and the like are other people's
            if token.type == tokenize.NAME and not attribute and _split(token.string) & set(_NAMES):
                wrong.append(f"{path.relative_to(_ROOT)}:{token.start[0]}: {token.string}")
    wrong += [str(path) for path in _SOURCE if _split(path.stem) & set(_NAMES)]
    assert wrong == []


# In these packages a variable is named by what it holds, and docstrings are as plain as messages.
_PLAIN = [
    path for path in _SOURCE if path.relative_to(_ROOT / "src" / "dagman").parts[0] in {"evaluation", "reports", "scans", "tables"}
]
_VAGUE = {"found", "look", "looks", "looked"}
_COLUMNS = {("segmentation_metrics.py", "found")}  # a column of predictions.csv


@pytest.mark.parametrize("path", _PLAIN, ids=lambda path: "/".join(path.parts[-2:]))
def test_variables_are_named_by_what_they_hold(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert {name for name in names if _split(name) & _VAGUE and (path.name, name) not in _COLUMNS} == set()


@pytest.mark.parametrize("path", _PLAIN, ids=lambda path: "/".join(path.parts[-2:]))
def test_docstrings_are_plain(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [node.value.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    words = re.compile(r"\b(said|told|tells?|looks?|looked|advice|goals?|keeper|chances)\b")
    assert [text for text in texts if isinstance(text, str) and words.search(text)] == []


# What texts of the code (messages, reports, not docstrings) must not have.
_TEXTS = re.compile(
    r"\b(tells? |told |Say --|say --|says so|look at|Look at|[Ll]ook out|"
    r"is no (rate|folder|file|store|run|encoder|TOML|JSON|whole number|list|feature|assignment|set of|readable))"
)

_DOUBLED = re.compile(r"\b([a-z]{2,}(?: [a-z]+)?) \1\b")
"""A word or two that stand twice; commands in examples may repeat a name."""


def test_messages_and_pages_are_plain():
    wrong = []
    for path in _SOURCE:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = {
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in documented:
                continue
            doubled = None if "dagman" in node.value else _DOUBLED.search(node.value)
            if match := _TEXTS.search(node.value) or doubled:
                wrong.append(f"{path.relative_to(_ROOT)}:{node.lineno}: {match[0]!r} in {node.value!r}")
    assert wrong == []


# Words of our own that stood for a standard term, or read as translated, with what to write; in messages, pages, README and guides.
_HOME_MADE = {
    r"\bmend(s|ed)?\b": "fix, correct",
    r"trivial answers?\b": "trivial baseline",
    r"\bby heart\b": "memorises",
    r"\b(bought|buys) (nothing|the)\b": "improves, has no benefit",
    r"\bwalks? the whole road\b": "runs the whole pipeline",
    r"\b(views|crops|voxels|steps|pairs) a (step|second|scan|rank)\b": "per",
    r"\b(row|item|vector|file|map|value|label|outcome) an? (item|scan|nodule|label|voxel|pixel|patient|slice|row)\b": "per",
    r"\bAsk for (--|1 or|fewer)": "Use ...",
    r"\bpatients? of (its|their) own\b": "a separate patient",
    r"\b(is|are|was) taken as\b": "is treated as",
    r"\bnothing but\b": "only",
    r"\b(is|are) judged by\b": "is evaluated by",
    r"\bgo(es)? on from\b": "resume, continue from",
    r"\bto go on\b": "to resume",
    r"\b(was|were) asked for\b": "was requested",
    r"\bbeside (this|the) (page|weights|file)\b": "next to",
    r"\bfor chance\b|\bwhat to know\b|\bwhat was found\b": "Summary, Notes",
    r"\bloads nothing from elsewhere\b": "needs no network connection",
    r"\bstands? still\b": "is not updated",
}


def find_home_made(text: str) -> list[str]:
    return [
        f"{match[0]!r} in {text!r}: {instead}"
        for pattern, instead in _HOME_MADE.items()
        if (match := re.search(pattern, text, re.I))
    ]


@pytest.mark.parametrize("part", sorted({path.relative_to(_ROOT / "src" / "dagman").parts[0] for path in _SOURCE}))
def test_standard_terms_are_used_for_what_has_one(part: str):
    wrong = []
    for path in (path for path in _SOURCE if path.relative_to(_ROOT / "src" / "dagman").parts[0] == part):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = {
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                wrong += [f"{path.relative_to(_ROOT)}:{node.lineno}: {one}" for one in find_home_made(node.value)]
    assert wrong == []


_DOCS = [*sorted((_ROOT / "docs" / "guides").glob("*.md")), _ROOT / "docs" / "index.md", _ROOT / "AGENTS.md"]


@pytest.mark.parametrize("page", _DOCS, ids=lambda page: page.name)
def test_guides_are_plain(page: Path):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"[^.\n]*\b(?:tells?|told|says?|said|is no [a-z]+)\b[^.\n]*", text) == []
    assert [one for line in text.splitlines() for one in find_home_made(line)] == []


def test_the_readme_uses_standard_terms():
    assert [one for line in (_ROOT / "README.md").read_text(encoding="utf-8").splitlines() for one in find_home_made(line)] == []
