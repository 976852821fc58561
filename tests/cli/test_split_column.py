"""Proves that every task with splits takes the column that `--split` names, and refuses one that is not there, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagman.cli.application import main

_TASKS = {
    "classify": ("classify", "pixels", "--label", "label"),
    "outcome of time and event": ("outcome", "pixels", "--time", "days", "--event", "died"),
    "outcome of a response": ("outcome", "pixels", "--label", "label"),
    "segment": ("segment", "scratch:tiny"),
    "compare classify": ("compare", "classify", "pixels", "histogram", "--label", "label"),
    "compare outcome": ("compare", "outcome", "pixels", "histogram", "--time", "days", "--event", "died"),
    "compare segment": ("compare", "segment", "scratch:tiny", "scratch:small"),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six patients, all in the training part of a column 'part'; their scans cannot be read."""
    rows = ["scan,mask,patient,label,days,died,part"]
    for number in range(6):
        (tmp_path / f"{number}.nii.gz").write_bytes(b"no scan")
        rows.append(f"{number}.nii.gz,{number}.nii.gz,p{number},{number % 2},{10 + number},{number % 2},train")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return tmp_path / "table.csv"


def _refuse(task: str, table: Path, split: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    command, *rest = _TASKS[task]
    places = [place for place, word in enumerate(rest) if word.startswith("--")]
    before, after = (rest[: places[0]], rest[places[0] :]) if places else (rest, [])
    arguments = [command, *before, table, *after, "--split", split, "--out", table.parent / "out"]
    monkeypatch.setattr("sys.argv", ["dagman", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(told.strip().splitlines()) == 1
    return told


@pytest.mark.parametrize("task", _TASKS)
def test_the_named_column_decides_who_is_tested(task, table, monkeypatch, capsys):
    # Folds of six patients would go on to read the scans: this refusal is of the given split alone.
    assert "no item of the given split is 'test'" in _refuse(task, table, "part", monkeypatch, capsys)


@pytest.mark.parametrize("task", _TASKS)
def test_a_column_that_is_not_there_is_refused_with_the_nearest(task, table, monkeypatch, capsys):
    assert "has no column 'parts'. Nearest: part" in _refuse(task, table, "parts", monkeypatch, capsys)
