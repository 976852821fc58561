"""Proves that one process at a time writes into a folder, and that one which is refused before it wrote leaves no trace."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dagman.errors import RunError, TaskError
from dagman.records.lock import hold_lock


def _fail_in(folder: Path, write: Callable[[], object] = lambda: None) -> None:
    def work() -> None:
        with hold_lock(folder, TaskError):
            write()
            raise TaskError("not like this")

    with pytest.raises(TaskError, match="not like this"):
        work()


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path):
    with hold_lock(tmp_path / "out"):
        with (
            pytest.raises(RunError, match=r"out: process \d+ on \S+ is writing here\. Wait until it ends"),
            hold_lock(tmp_path / "out", RunError),
        ):
            pass
        (tmp_path / "out" / "result").touch()
    with hold_lock(tmp_path / "out"):
        assert (tmp_path / "out" / "result").exists()


def test_a_refusal_before_anything_was_written_leaves_no_folder_that_was_not_there(tmp_path):
    _fail_in(tmp_path / "a" / "b" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    _fail_in(tmp_path / "a" / "b" / "out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_what_was_written_and_what_was_there_before_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    _fail_in(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()
    _fail_in(tmp_path / "a" / "out", lambda: (tmp_path / "a" / "out" / "scores.jsonl").touch())
    assert (tmp_path / "a" / "out" / "scores.jsonl").exists()
    _fail_in(tmp_path / "b" / "out", lambda: (tmp_path / "b" / "notes").touch())
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["notes"]


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def refuse(*arguments: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError) as caught, hold_lock(tmp_path / "out", RunError):
        pass
    what = "its file system cannot lock files (no locks available)"
    assert str(caught.value) == f"{tmp_path / 'out'}: {what}. Choose a folder on another file system."
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_process_removed_meanwhile_is_not_taken_for_one(tmp_path, monkeypatch):
    lock = fcntl.flock

    def lock_late(*arguments: int) -> None:
        shutil.rmtree(tmp_path / "out")
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with (
        pytest.raises(TaskError, match=r"another process has just released it\. Repeat the command"),
        hold_lock(tmp_path / "out", TaskError),
    ):
        pass
