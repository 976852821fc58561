"""The health of a run: the verdict of every monitor at its last evaluation, during training and later from the run's folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dagman.settings import Settings
from dagman.settings.momentum import list_momenta, measure_memory
from dagman.training.monitoring import verdicts
from dagman.training.monitoring.cohort import Cohort
from dagman.training.monitoring.verdicts import EARLY, FRESH, Verdict

if TYPE_CHECKING:
    from dagman.training.run import Run

KEPT = 1000
"""Number of steps that verdicts are based on: the last of a run."""


@dataclass(kw_only=True)
class Health:
    """Follows a run row by row and judges it. The rows in a run's folder give the same verdicts as the run itself.

    Attributes:
        settings: The run's settings, resolved.
        cohort: What the run learns from; None if it is not known.
        failed_at: The step that ended the run because its loss or gradient was not finite.
    """

    settings: Settings
    cohort: Cohort | None = None
    failed_at: int | None = None
    _steps: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT))
    _waits: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    _start: float | None = None
    _best: float | None = None
    _first: Mapping[str, Any] | None = None
    _last: Mapping[str, Any] | None = None

    def add_step(self, row: Mapping[str, Any]) -> None:
        """A row of `metrics.jsonl`."""
        self._steps.append(row)
        if self._start is None:
            self._start = verdicts.average_loss(self._steps, verdicts.OPENING)
        average = verdicts.average_loss(self._steps, self._window)
        if average is not None:
            self._best = average if self._best is None else min(self._best, average)

    def add_wait(self, share: float) -> None:
        """The share of a step that was spent waiting for data."""
        self._waits.append(share)

    def add_evaluation(self, row: Mapping[str, Any]) -> None:
        """A row of `monitors.jsonl`."""
        self._first = self._first or row
        self._last = row

    @property
    def _window(self) -> int:
        return verdicts.choose_window(self.settings.train.batch, self.settings.train.steps)

    @property
    def last_step(self) -> Mapping[str, Any]:
        """The last row of `metrics.jsonl`; empty before the first step."""
        return self._steps[-1] if self._steps else {}

    def judge(self) -> list[Verdict]:
        """A verdict from each monitor that has something to judge, at its last evaluation."""
        settings = self.settings
        rows = [*self._steps, {"step": self.failed_at}] if self.failed_at is not None else self._steps
        judged = verdicts.judge_losses(list(rows), settings.optim.clip, self._start, self._best, self._window)
        if self._last is not None and self._first is not None:
            judged += self._judge_evaluation(self._first, self._last)
        if self.cohort is not None:
            judged.append(verdicts.judge_scans(self.cohort.scans, self.cohort.patients, self.cohort.copies))
        return [*judged, verdicts.judge_waiting(list(self._waits))]

    def _judge_evaluation(self, first: Mapping[str, Any], last: Mapping[str, Any]) -> list[Verdict]:
        settings, step = self.settings, int(last["step"])
        steps = settings.train.steps
        judged = []
        if last.get("masks"):
            judged.append(verdicts.judge_masks(last["masks"]))
        if last.get("reconstruction"):
            judged.append(verdicts.judge_reconstruction(last["reconstruction"], step, steps))
        solved = settings.teacher.temperature == "entropy"
        judged += [
            verdicts.judge_targets(name, row, step, steps, solved=solved) for name, row in (last.get("projectors") or {}).items()
        ]
        if last.get("features") and first.get("features"):
            judged.append(verdicts.judge_features(last["features"], first["features"]))
            # During warm-up, a teacher may move by less than float32 resolves.
            if settings.needs_teacher and step >= FRESH * steps:
                teacher = settings.teacher
                momenta = list_momenta(steps, float(teacher.momentum), float(teacher.momentum_end))[:step]
                left = measure_memory(momenta).first_weights if step >= EARLY * steps else 0.0
                judged.append(verdicts.judge_teacher(last, first, left))
        if last.get("attention"):
            judged.append(verdicts.judge_attention(last["attention"], settings.masking.choice.needs_attention, step))
        return judged


def follow_run(run: Run, cohort: Cohort | None = None) -> Health:
    """The health of a run up to the last rows of its folder."""
    failed = next((row["step"] + 1 for row in run.warnings if row["key"] == "not-finite"), None)
    health = Health(settings=run.settings, cohort=cohort or _read_cohort(run.command.get("inputs")), failed_at=failed)
    for row in run.steps:
        health.add_step(row)
    for row in run.timings[-KEPT:]:
        health.add_wait(row["waiting_share"])
    for row in run.monitors:
        health.add_evaluation(row)
    return health


def judge_run(run: Run) -> list[Verdict]:
    """A verdict from each monitor of a run that has something to judge, at its last evaluation."""
    return follow_run(run).judge()


def list_warnings(judged: Sequence[Verdict]) -> list[tuple[str, str]]:
    """Keys and sentences of the verdicts that deserve a warning while a run is in progress."""
    return [(one.key, one.plain) for one in judged if one.key and one.light != "green"]


def _read_cohort(inputs: Any) -> Cohort | None:
    """The cohort as recorded in `command.json`; None for older runs."""
    if not isinstance(inputs, Mapping) or not isinstance(inputs.get("count"), int) or not isinstance(inputs.get("patients"), int):
        return None
    copies = tuple(tuple(map(str, group)) for group in inputs.get("copies") or [])
    return Cohort(scans=inputs["count"], patients=inputs["patients"], copies=copies)
