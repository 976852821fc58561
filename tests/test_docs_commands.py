"""Proves that every command of the documentation and of the help exists as it is written: parsed by the program, not run.

Shell blocks of README and guides, the examples that end each command's help, options named in the text, and targets of make.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dagman.cli import application

_ROOT = Path(__file__).parents[1]
_PAGES = [_ROOT / "README.md", _ROOT / "CONTRIBUTING.md", *sorted((_ROOT / "docs" / "guides").glob("*.md"))]
# Options of other programs that our text names.
_OTHERS = {"--user", "--signals-to-handle"}


def _parse(words: list[str]) -> None:
    """Parse one command line of dagman; raises what click raises for what the program would refuse."""
    if words in (["--help"], ["--version"]):
        return
    assert words[0] in application.list_commands(), f"there is no command {words[0]}"
    command, rest = application.load_command(words[0]), words[1:]
    if hasattr(command, "commands"):
        assert rest, f"{words[0]} needs a command of its own"
        command, rest = command.get_command(None, rest[0]), rest[1:]
    if "--help" not in rest:
        command.make_context(words[0], list(rest))


def _list_commands(text: str) -> list[str]:
    """Command lines of the blocks between fences that are no Python: comments cut, continued lines joined."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in ("", "sh", "bash", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                found += [part.strip() for part in re.split(r"&&|\|\|?|;", line.partition("#")[0]) if part.strip()]
    return found


def _examples() -> list[str]:
    def visit(command: Any) -> list[str]:
        own = [command.epilog.removeprefix("Example: ")] if command.epilog else []
        return own + [text for one in getattr(command, "commands", {}).values() for text in visit(one)]

    return [text for name in application.list_commands() for text in visit(application.load_command(name))]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_commands_of_the_documentation_are_what_the_program_takes(page: Path):
    for line in _list_commands(page.read_text(encoding="utf-8")):
        words = shlex.split(line)
        if words[0] == "dagman":
            _parse(words[1:])
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (_ROOT / "Makefile").read_text(), re.MULTILINE), line


@pytest.mark.parametrize("example", _examples())
def test_examples_of_the_help_are_what_the_program_takes(example: str):
    words = shlex.split(example)
    assert words[0] == "dagman"
    _parse(words[1:])


def test_options_named_in_the_text_exist():
    known = set(_OTHERS)

    def visit(command: Any) -> None:
        known.update(option for one in command.params for option in (*one.opts, *one.secondary_opts))
        for inner in getattr(command, "commands", {}).values():
            visit(inner)

    for name in application.list_commands():
        visit(application.load_command(name))
    for page in _PAGES:
        named = set(re.findall(r"`(--[a-z][a-z-]*)", page.read_text(encoding="utf-8")))
        assert not named - known - {"--help", "--version"}, page.name


def test_a_wrong_option_would_be_noticed():
    # Typer carries a click of its own, or uses the one installed: the class differs by version, the words do not.
    with pytest.raises(Exception, match="No such option"):
        _parse(["report", "run", "--nothing"])
