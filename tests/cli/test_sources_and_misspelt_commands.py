"""Proves that patterns and lists name sources, and that a misspelt command is answered with the nearest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dagman.cli import application
from dagman.errors import SettingsError
from dagman.records.sources import expand_sources


def test_patterns_and_lists_are_filled_in_once_each(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for name in ("b.nii", "a.nii", "deep/c.nii", "odd[1].nii"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("\ufeffa.nii\n\n# not this\ndeep/c.nii\n", encoding="utf-8")
    found = expand_sources([tmp_path / "?.nii", tmp_path / "list.txt", tmp_path / "odd[1].nii"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.nii", "b.nii", "deep/c.nii", "odd[1].nii"]
    assert len(expand_sources([tmp_path / "**" / "*.nii"])) == 4


@pytest.mark.parametrize(("name", "said"), [("*.mha", "matches no file"), ("empty.txt", "is an empty list")])
def test_a_pattern_or_list_of_nothing_is_refused(tmp_path: Path, name: str, said: str):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(SettingsError, match=said):
        expand_sources([tmp_path / name])


def test_a_misspelt_command_is_answered_with_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dagman", "pretrian", "scans"])
    with pytest.raises(SystemExit) as ended:
        application.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "dagman: there is no command 'pretrian'. Nearest: pretrain.\n"
