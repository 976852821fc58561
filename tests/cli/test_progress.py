"""Progress in a job's log: quiet for quick commands, steady for long ones, with an honest time left."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from dagman.cli.progress import EVERY, FIRST, LOG, PlainLines, follow_parts, show_training


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _lines(folder: Path | None, *, terminal: bool = False) -> tuple[PlainLines, _Clock]:
    clock = _Clock()
    return PlainLines(Console(file=io.StringIO(), force_terminal=terminal), folder, clock=clock), clock


def _run(lines: PlainLines, clock: _Clock, steps: int, seconds: float) -> None:
    for step in range(1, steps + 1):
        clock.now += seconds
        lines.state(f"step {step} of {steps}", step, steps)


def test_a_quick_command_stays_quiet(tmp_path, capsys):
    _run(*_lines(tmp_path), steps=5, seconds=FIRST / 6)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / LOG).exists()


def test_a_rank_for_which_another_speaks_writes_nothing(tmp_path, capsys):
    clock = _Clock()
    _run(PlainLines(Console(quiet=True), tmp_path, clock=clock), clock, steps=200, seconds=1.0)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / LOG).exists()


def test_a_long_command_is_followed_at_a_steady_pace_to_its_end(tmp_path, capsys):
    _run(*_lines(tmp_path), steps=200, seconds=1.0)
    printed = capsys.readouterr().err.splitlines()
    steps = [int(line.split()[1]) for line in printed]
    assert steps == [FIRST, *range(int(FIRST + EVERY), 200, int(EVERY)), 200]
    assert [line.split(" ", 1)[1] for line in (tmp_path / LOG).read_text().splitlines()] == printed


def test_the_time_left_is_that_of_the_steps_left(capsys):
    _run(*_lines(None), steps=100, seconds=2.0)
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("step 49 "))
    assert line == "step 49 of 100 · 98 s so far, about 2 min left"


def test_the_time_left_is_counted_anew_for_a_second_run(capsys):
    lines, clock = _lines(None)
    _run(lines, clock, steps=50, seconds=2.0)
    _run(lines, clock, steps=50, seconds=2.0)
    left = [line.split(", about ")[1] for line in capsys.readouterr().err.splitlines() if ", about " in line]
    assert max(int(text.split()[0]) for text in left if text.endswith(" s left")) <= 98
    assert not any("min" in text for text in left)


def test_a_terminal_has_its_bar_and_the_folder_its_log(tmp_path, capsys):
    _run(*_lines(tmp_path, terminal=True), steps=20, seconds=10.0)
    assert capsys.readouterr().err == ""
    assert (tmp_path / LOG).read_text().count("\n") == 8


def test_nothing_is_made_for_a_folder_that_does_not_exist_yet(tmp_path):
    _run(*_lines(tmp_path / "later"), steps=3, seconds=60.0)
    assert not (tmp_path / "later").exists()


def test_a_training_without_a_terminal_states_steps_losses_and_time_left(capsys):
    clock = _Clock()
    console = Console(file=io.StringIO())
    with show_training(console, PlainLines(console, clock=clock)) as notify:
        notify("begin", {"step": 0, "steps": 90})
        for step in range(1, 91):
            clock.now += 1
            notify("step", {"step": step, "amip": 0.25, "views_per_s": 4.0})
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "step 8 of 90: amip 0.250 · 8 s so far, about 82 s left"
    assert last.startswith("step 90 of 90: amip 0.250")


@pytest.mark.parametrize("total", [0, 3])
def test_items_are_followed_without_being_changed(total):
    lines, _ = _lines(None)
    assert list(lines.follow(range(total), "item", total)) == list(range(total))


def test_counted_parts_have_the_time_that_the_rest_of_them_take(capsys, tmp_path):
    clock = _Clock()
    with follow_parts(Console(file=io.StringIO()), tmp_path, clock=clock) as notify:
        for text in [
            *(f"run: features of item {number} of 10" for number in range(1, 11)),
            "intervals",
            "fit 1 of 3",
            "fit 2 of 3",
        ]:
            notify(text)
            clock.now += EVERY
    printed = capsys.readouterr().err.splitlines()
    assert printed[1:] == [
        "run: features of item 3 of 10 · 60 s so far, about 4 min left of this part",
        *(f"run: features of item {n} of 10 · {t} so far, about {r} left of this part" for n, t, r in (
            (4, "90 s", "4 min"), (5, "2 min", "3 min"), (6, "2 min", "2 min"), (7, "3 min", "2 min"), (8, "4 min", "90 s"),
            (9, "4 min", "60 s"), (10, "4 min", "30 s"))),
        "intervals · 5 min so far",
        "fit 1 of 3 · 6 min so far",
        "fit 2 of 3 · 6 min so far, about 60 s left of this part",
    ]  # fmt: skip
    assert len((tmp_path / LOG).read_text().splitlines()) == len(printed)
