"""The runs in a folder: how far each one is, whether it is being written, and its status."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dagman.errors import DagmanError, RunError
from dagman.records.lock import is_held, is_left
from dagman.records.names import suggest_path
from dagman.training.checkpoints import list_checkpoints
from dagman.training.monitoring.health import judge_run
from dagman.training.monitoring.verdicts import LIGHTS, Light, sum_up
from dagman.training.run import Run, pick_losses

State = Literal["running", "finished", "waiting", "killed", "damaged"]
"""running: a process is writing it; finished: all steps are done; waiting: it stopped at a checkpoint, or has not started; killed:
it ended after its last checkpoint, or before its first step; damaged: it cannot be read."""
_TRACES = ("metrics.jsonl", "checkpoints", "encoder")
"""What a run has besides its settings."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run: its state, steps and last losses, and its most severe verdict with the number of other ones that are not green.

    `light`, `text` and `remedy` are empty before the first step; `problem` says why a run is damaged.
    """

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
    others: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def list_runs(folder: str | Path) -> list[RunState]:
    """Every run in a folder, at any depth, sorted by path; a damaged run does not hide the others.

    Raises:
        RunError: The folder does not exist, cannot be opened, or holds no run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        do = "Give a folder with runs, or a run"
        if folder.exists():
            raise RunError("is not a folder", where=folder, do=do)
        raise RunError("does not exist", where=folder, do=suggest_path(folder, do))
    found = sorted(_find_runs(folder))
    if not found:
        raise RunError("holds no runs", where=folder, do="Give a folder with runs, as written by dagman pretrain --out")
    return [describe_state(path) for path in found]


def describe_state(path: Path) -> RunState:
    """The state of one run."""
    try:
        return _read_state(Run(path))
    except DagmanError as error:
        return RunState(path=str(path), state="damaged", problem=str(error))


def _find_runs(folder: Path) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
        return
    try:
        inner = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        # Of another user, or gone since it was listed: no run that can be described.
        return
    for path in inner:
        # Stores hold many folders and no runs.
        if not (path / "store.json").exists():
            yield from _find_runs(path)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run, damaged or not: other programs have a settings.toml, too."""
    settings = folder / "settings.toml"
    if not settings.is_file():
        return False
    return any((folder / name).exists() for name in _TRACES) or b"[train]" in settings.read_bytes()


def _read_state(run: Run) -> RunState:
    settings, rows = run.settings, run.steps
    step, steps = run.last_step, settings.train.steps
    judged = judge_run(run)
    total = sum_up(judged)
    noticed = sorted((one for one in judged if one.light != "green"), key=lambda one: LIGHTS.index(one.light))
    values = (noticed[0] if noticed else total).to_json()
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
        light=total.light if rows else None,
        text=values["text"] if rows else "",
        remedy=values["remedy"] if rows else "",
        others=len(noticed[1:]) if rows else 0,
    )


def _find_state(run: Run, step: int, steps: int) -> State:
    if is_held(run.path):
        return "running"
    if step >= steps:
        return "finished"
    if step == 0:
        return "killed" if is_left(run.path) else "waiting"
    return "waiting" if list_checkpoints(run.path)[-1:] == [step] else "killed"
