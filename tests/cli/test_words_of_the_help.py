"""Proves that help shows plain names of what is taken, that shells can complete, and that values are checked before work begins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from dagman.cli import application
from dagman.cli.metavars import show_type
from dagman.errors import SettingsError
from dagman.records.sources import expand_sources


@pytest.mark.parametrize(
    ("given", "shown"),
    [("<path>", "PATH"), ("<str>", "TEXT"), ("<int range>", "INTEGER"), ("<float>", "NUMBER"), ("<bool>", ""), ("<a|b>", "a|b")],
)
def test_a_type_is_shown_by_a_plain_name(given, shown):
    assert show_type(given) == shown
    assert show_type(shown or None) == (shown or None)


def test_a_list_is_shown_as_repeated_where_it_is_an_argument():
    assert show_type("<list[Path]>", argument=True) == "PATH..."
    assert show_type("<list[str]>") == "TEXT"


def _list_commands(command: Any, place: str) -> list[tuple[str, Any]]:
    inner = [pair for name, one in getattr(command, "commands", {}).items() for pair in _list_commands(one, f"{place} {name}")]
    return [(place, command), *inner]


@pytest.mark.parametrize("name", application.list_commands())
def test_help_has_plain_types_and_a_required_option_no_default(name, capsys):
    for place, command in _list_commands(application.load_command(name), name):
        context = command.make_context(place, [], resilient_parsing=True)
        # With rich installed, typer prints the help rather than returning it.
        text = command.get_help(context) + capsys.readouterr().out
        assert "Usage" in text
        assert not re.search(r"<(list|str|path|int|float|bool)|list\[", text), place
        assert "(required)" not in text, place


@pytest.mark.parametrize("name", ["classify", "regress"])
def test_the_label_is_shown_as_required(name):
    command = application.load_command(name)
    label = next(param for param in command.params if param.name == "label")
    context = command.make_context(name, [], resilient_parsing=True)
    assert re.search(r"\[required\]", " ".join(label.get_help_record(context)))


def test_the_usage_names_models_and_table(capsys):
    command = application.load_command("classify")
    usage = command.get_usage(command.make_context("dagman classify", [], resilient_parsing=True))
    assert "MODEL... TABLE" in usage
    assert "{" not in usage


@pytest.mark.journey
@pytest.mark.parametrize(
    ("words", "count", "wanted"), [("dagman pret", "1", "pretrain"), ("dagman prepare --pat", "2", "--patients")]
)
def test_a_shell_completes_commands_and_their_options(words, count, wanted):
    asked = {"_DAGMAN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
    program = [sys.executable, "-c", "from dagman.cli.application import app; app(prog_name='dagman')"]
    ended = subprocess.run(program, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == [wanted]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["embed", "scratch:tiny", "scans", "--out", "x.csv", "--coordinates", "lpss"],
            "--coordinates 'lpss' is unknown. Nearest: lps.",
        ),
        (["predict", "model", "scans", "--out", "x", "--ids", "exat"], "--ids 'exat' is unknown. Nearest: exact."),
        (["classify", "a", "b", "--out", "x", "--weights", "tacher"], "--weights 'tacher' is unknown. Nearest: teacher."),
    ],
)
def test_a_misspelt_value_is_refused_before_anything_is_read(words, text):
    with pytest.raises(SettingsError) as caught:
        application.load_command(words[0]).make_context(words[0], words[1:])
    assert str(caught.value) == text


def test_a_list_of_paths_may_have_any_name_after_an_at_sign(tmp_path):
    (tmp_path / "cohort").write_text("# two scans\na.nii.gz\n\nb.nii.gz\n")
    listed = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    listed[0].touch()
    source = type(tmp_path)(f"@{tmp_path / 'cohort'}")
    assert expand_sources([source]) == listed
    with pytest.raises(SettingsError, match="is not a file"):
        expand_sources([type(tmp_path)("@absent")])
