"""Proves that patterns and lists name sources, and that a misspelt command is answered with the nearest."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dagman.cli import application
from dagman.errors import RunError, SettingsError, StoreError
from dagman.records.names import suggest_path
from dagman.records.sources import expand_sources
from dagman.scans.discovery import find_series
from dagman.store.manifest import Store
from dagman.training.start.mixture import expand_parts


def test_patterns_and_lists_are_filled_in_once_each(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for name in ("b.nii", "a.nii", "deep/c.nii", "odd[1].nii"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("\ufeffa.nii\n\n# not this\ndeep/c.nii\n", encoding="utf-8")
    found = expand_sources([tmp_path / "?.nii", tmp_path / "list.txt", tmp_path / "odd[1].nii"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.nii", "b.nii", "deep/c.nii", "odd[1].nii"]
    assert len(expand_sources([tmp_path / "**" / "*.nii"])) == 4


def test_patterns_of_stores_keep_their_weight(tmp_path: Path):
    for name in ("site-a", "site-b", "other"):
        (tmp_path / name).mkdir()
    found = expand_parts([tmp_path / "site-*:2", tmp_path / "other"])
    assert [path.name for path in found] == ["site-a:2", "site-b:2", "other"]


def test_stores_that_do_not_exist_are_named_together(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "store.json").write_text("{}")
    (tmp_path / "stores.txt").write_text("a\nb\nc\n")
    with pytest.raises(RunError, match=r"2 of 3 stores do not exist: .*/b, .*/c\. Correct"):
        expand_parts([tmp_path / "stores.txt"])


def test_rows_of_a_list_that_do_not_exist_cost_no_other_scan(tmp_path: Path):
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    (tmp_path / "list.txt").write_text("gone.nii.gz\nscan.nii.gz\nlost.nii.gz\n")
    found = find_series(expand_sources([tmp_path / "list.txt"]))
    assert [Path(one.source).name for one in found.series] == ["scan.nii.gz"]
    assert [Path(one.source).name for one in found.refused] == ["gone.nii.gz", "lost.nii.gz"]
    assert all(one.reason.startswith("does not exist: ") for one in found.refused)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("*.mha", "matches no file"),
        ("empty.txt", "is an empty list"),
        ("wrong.txt", r"none of its 2 paths exists \(.*a\.nii, .*b\.nii\)\. Write paths relative to the list"),
        ("absent", r"absent: does not exist\. Check the path"),
    ],
)
def test_a_path_pattern_or_list_of_nothing_is_refused(tmp_path: Path, name: str, said: str):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "wrong.txt").write_text("a.nii\nb.nii\n")
    with pytest.raises(SettingsError, match=said):
        expand_sources([tmp_path / name])


def test_a_misspelt_command_is_answered_with_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dagman", "pretrian", "scans"])
    with pytest.raises(SystemExit) as ended:
        application.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "dagman: there is no command 'pretrian'. Nearest: pretrain.\n"


def test_a_misspelt_path_is_answered_with_the_nearest_beside_it(tmp_path: Path):
    for name in ("store", "runs", ".store-hidden"):
        (tmp_path / name).mkdir()
    assert suggest_path(tmp_path / "stroe", "Check it") == f"Nearest: {tmp_path / 'store'}"
    assert suggest_path(tmp_path / "else", "Check it") == suggest_path(tmp_path / "no" / "store", "Check it") == "Check it"
    with pytest.raises(StoreError, match=r"does not exist\. Nearest: .*store"):
        Store(tmp_path / "stor")


def test_a_viewer_replaces_its_own_page_alone(tmp_path: Path, call_dagman):
    scan, other = tmp_path / "scan.nii.gz", tmp_path / "other.nii.gz"
    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    nib.save(image, scan)
    nib.save(image, other)
    page = tmp_path / "v.html"
    assert [call_dagman("view", one, "--out", page)[0] for one in (scan, scan, other)] == [0, 0, 2]
    assert "hides and shows" not in page.read_text(encoding="utf-8").split("<summary>")[1]


def test_inspecting_with_a_new_key_makes_it(tmp_path: Path, call_dagman, monkeypatch):
    monkeypatch.setenv("DAGMAN_KEY", str(tmp_path / "new.key"))
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    assert "new.key; keep it" in call_dagman("inspect", tmp_path / "scan.nii.gz")[1]
    assert (tmp_path / "new.key").is_file()
