"""`dagman compare`: what cannot be compared is one line and exit code 2, before anything is read."""

from __future__ import annotations

import pytest

from dagman.cli.application import main


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["classfy", "pixels", "histogram", "table.csv"], "Nearest: classify"),
        (["classify", "pixels", "table.csv", "--label", "malignant"], "one model cannot be compared"),
        (["classify", "pixels", "scratch:tinny", "table.csv", "--label", "malignant"], "neither a folder nor a known model"),
    ],
)
def test_a_mistake_is_one_line(arguments, wanted, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["dagman", "compare", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert wanted in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
