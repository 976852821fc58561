"""`dagman classify` and `dagman outcome`: a mistake is one line and exit code 2, before any scan is read, and leaves no folder."""

from __future__ import annotations

import pytest

from dagman.cli.application import main
from dagman.cli.tasks.task_options import split_counts, split_names, split_numbers
from dagman.errors import SettingsError

_TIMES = ("--time", "days", "--event", "died")


@pytest.fixture
def table(tmp_path):
    """Six patients whose scans cannot be read: whatever opens one says so."""
    (tmp_path / "scan.nii.gz").write_bytes(b"no scan")
    rows = ["scan,patient,label,days,died,week,seen,center_x_mm,center_y_mm,center_z_mm"]
    rows += [f"scan.nii.gz,p{number},{number % 2},{10 + number},{number % 2},7,1,{number},0,0" for number in range(6)]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return tmp_path / "table.csv"


@pytest.mark.parametrize(
    ("task", "options", "wanted"),
    [
        ("classify", ("--label", "label", "--shares", "0,100"), "a share of 0 % was requested"),
        ("classify", ("--label", "label", "--shares", "150"), "a share of 150 % was requested"),
        ("classify", ("--label", "label", "--per-class", "0"), "0 patients per class were requested"),
        ("classify", ("--label", "label", "--per-class", "1.5"), "--shots 1.5 is not a whole number"),
        ("classify", ("--label", "label", "--per-class", "x"), "--shots 'x' is not a list of numbers"),
        ("classify", ("--label", "label", "--per-class", "9", "--shares", ""), "9 patients per class are skipped"),
        ("classify", ("--label", "label", "--folds", "0"), "0 folds cannot be tested"),
        ("classify", ("--label", "label", "--folds", "5"), "class '0' has 3 patients, fewer than 5 folds. Use --folds 3"),
        ("classify", ("--label", "label", "--method", "finetune"), "pixels has no weights to fine-tune"),
        ("regress", ("--label", "days", "--shares", "0"), "a share of 0 % was requested"),
        ("regress", ("--label", "died", "--method", "finetune"), "pixels has no weights to fine-tune. Use --method ridge"),
        ("regress", ("--label", "days", "--folds", "9"), "the table has 6 patients, fewer than 9 folds. Use --folds 6"),
        ("regress", ("--label", "week"), "column 'week' holds one number only. Choose another --label"),
        ("outcome", (*_TIMES, "--shares", "0"), "a share of 0 % was requested"),
        ("outcome", (*_TIMES, "--method", "finetune"), "pixels has no weights to fine-tune. Use --method cox"),
        ("outcome", (*_TIMES, "--clinical", "died"), "column 'died' is both the event and clinical"),
        ("outcome", ("--time", "week", "--event", "seen"), "all tested times are equal (7): no two patients can be compared"),
        ("outcome", ("--label", "label", "--shares", "0"), "a share of 0 % was requested"),
    ],
)
def test_a_mistake_is_one_line_before_any_scan_is_read(task, options, wanted, table, monkeypatch, capsys):
    folds = () if "--folds" in options else ("--folds", "2")
    out = table.parent / "out"
    monkeypatch.setattr("sys.argv", ["dagman", task, "pixels", str(table), *options, *folds, "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert wanted in told
    assert len(told.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("task", [("classify", "--label", "label"), ("outcome", *_TIMES), ("outcome", "--label", "label")])
def test_a_refusal_while_reading_leaves_no_folder_behind(task, table, monkeypatch, capsys):
    command, *options = task
    arguments = ["dagman", command, "pixels", str(table), *options, "--folds", "2", "--out", str(table.parent / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "no item can be used" in capsys.readouterr().err
    assert not (table.parent / "out").exists()


def test_lists_between_commas():
    assert split_names(" a, b,,c ") == ("a", "b", "c")
    assert split_numbers("shares", "25, 50.5") == (25.0, 50.5)
    assert split_counts("per-class", "1,5") == (1, 5)
    assert split_counts("per-class", "") == ()
    with pytest.raises(SettingsError, match="not a whole number"):
        split_counts("per-class", "inf")
