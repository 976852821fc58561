"""Proves that a command line that cannot be parsed is answered in one line, with the nearest name, and without Click's box."""

from __future__ import annotations

import sys

import pytest

from dagman.cli import application


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("inspect a --outt b", "inspect has no option --outt. Nearest: --out."),
        ("--verson", "dagman has no option --verson. Nearest: --version."),
        ("report a -z", "report has no option -z. See dagman report --help."),
        ("inspect", "inspect needs SCANS. See dagman inspect --help."),
        ("prepare a", "prepare needs --out"),
        ("prepare a --out", "--out needs a value. Give it after the option."),
        ("prepare a --out b --spacing four", "--spacing: 'four' is not a number."),
        ("prepare a --out b --workers 1.5", "--workers: '1.5' is not a whole number."),
        ("prepare a --out b --modality pet", "--modality: 'pet' is not one of"),
        ("classify a b --label x --out y --repeats 0", "--repeats: '0' must be at least 1."),
        ("pretrain a --out b --resume=3", "--resume takes no value. Give --resume alone."),
        ("store verifyy a", "store has no command 'verifyy'. Nearest: verify."),
        ("info a b", "info takes no further arguments, but got: b."),
    ],
)
def test_a_wrong_option_is_one_line_with_the_nearest_name(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dagman", *words.split()])
    with pytest.raises(SystemExit) as ended:
        application.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith(f"dagman: {said}")
    assert error.count("\n") == 1
