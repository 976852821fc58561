"""Proves that help, docs and code use the field's words and plain sentences: a list of the words that are gone.

A word of the list that is right in a place (a quotation, a name of someone else's) is written into `_ALLOWED` there, by line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

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
    module = __import__(f"dagman.cli.{application._MODULES.get(name, name)}", fromlist=["app"])
    found: list[tuple[str, str]] = [(name, application._COMMANDS[name])]

    def visit(command: Any, place: str) -> None:
        found.append((place, command.help or ""))
        found.extend((f"{place} {one.name}", one.help) for one in command.params if getattr(one, "help", None))
        for inner, child in getattr(command, "commands", {}).items():
            visit(child, f"{place} {inner}")

    visit(typer.main.get_command(module.app), name)
    return found


@pytest.mark.parametrize("name", application._COMMANDS)
def test_help_is_in_plain_sentences(name: str):
    wrong = [
        f"{place}: {text!r}: {instead}"
        for place, text in _describe(name)
        for pattern, instead in _HELP.items()
        if re.search(pattern, text)
    ]
    assert wrong == []


def test_help_begins_with_a_capital_or_with_values():
    texts = [(place, text) for name in application._COMMANDS for place, text in _describe(name) if text]
    assert [f"{place}: {text}" for place, text in texts if not re.match(r"[A-Z]|[a-z0-9_]+[,:.=]|[a-z]+ \(", text)] == []
