"""The runs below a folder: how far each is, whether it is being written, and its light."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dagman.errors import DagmanError, RunError
from dagman.records.lock import is_held
from dagman.records.names import suggest_path
from dagman.training.checkpoints import list_checkpoints
from dagman.training.monitoring.health import judge_run
from dagman.training.monitoring.verdicts import LIGHTS, Light, sum_up
from dagman.training.run import Run, pick_losses

State = Literal["running", "finished", "waiting", "killed", "damaged"]
"""running: a process writes it; finished: all steps are done; waiting: it was stopped at a checkpoint, or has not begun; killed: it
ended without a checkpoint of its last step; damaged: it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run: its state, steps, last losses, and its light with the gravest verdict's sentence; `problem` where it is damaged."""

    path: str
    state: State
    method: str = ""
    size: str = ""
    seed: int | None = None
    step: int = 0
    steps: int = 0
    losses: dict[str, float] | None = None
    seconds_left: float | None = None
    light: Light | None = None
    text: str = ""
    remedy: str = ""
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def list_runs(folder: str | Path) -> list[RunState]:
    """Every run in a folder or below it, by path; one that is damaged does not hide the others.

    Raises:
        RunError: There is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise RunError(what, where=folder, do=suggest_path(folder, "Give a folder with runs, or a run"))
    found = sorted(_find_runs(folder))
    if not found:
        raise RunError("holds no runs", where=folder, do="Give a parent folder of those written by dagman pretrain --out")
    return [describe_state(path) for path in found]


def describe_state(path: Path) -> RunState:
    """The state of one run."""
    try:
        return _read_state(Run(path))
    except DagmanError as error:
        return RunState(path=str(path), state="damaged", problem=str(error))


def _find_runs(folder: Path) -> Iterator[Path]:
    if (folder / "settings.toml").is_file():
        yield folder
        return
    for inner in folder.iterdir():
        # Stores hold many folders, and no runs.
        if inner.is_dir() and not inner.is_symlink() and not (inner / "store.json").exists():
            yield from _find_runs(inner)


def _read_state(run: Run) -> RunState:
    settings, rows = run.settings, run.steps
    step, steps = run.last_step, settings.train.steps
    judged = judge_run(run)
    gravest = min([sum_up(judged), *judged], key=lambda one: (LIGHTS.index(one.light), not one.key and one.light != "green"))
    values = gravest.to_json()
    seconds = sorted(row["seconds"] for row in run.timings[-100:])
    return RunState(
        path=str(run.path),
        state=_find_state(run, step, steps),
        method=settings.method,
        size=settings.size,
        seed=settings.seed,
        step=step,
        steps=steps,
        losses=pick_losses(rows[-1]) if rows else None,
        seconds_left=round(seconds[len(seconds) // 2] * (steps - step), 1) if seconds else None,
        light=gravest.light if rows else None,
        text=values["text"] if rows else "",
        remedy=values["remedy"] if rows else "",
    )


def _find_state(run: Run, step: int, steps: int) -> State:
    if is_held(run.path):
        return "running"
    if step >= steps:
        return "finished"
    return "waiting" if step == 0 or list_checkpoints(run.path)[-1:] == [step] else "killed"
