"""The training loop: reads views, takes steps, and at intervals evaluates, saves and reports."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from dagman.devices import peak_memory_gib
from dagman.encoder.folder import EncoderConfig
from dagman.errors import RunError
from dagman.records.journal import append_row
from dagman.training import assembly
from dagman.training.checkpoints import list_checkpoints, write_checkpoint
from dagman.training.learner import Learner
from dagman.training.monitoring.cohort import Cohort, describe_cohort
from dagman.training.monitoring.curves import Curves
from dagman.training.monitoring.health import Health, follow_run, list_warnings
from dagman.training.monitoring.validation import Validation
from dagman.training.monitoring.verdicts import FRESH, sum_up
from dagman.training.parallel.ending import Ending
from dagman.training.recovery.broken import Broken, explain_broken, keep_broken, list_broken
from dagman.training.recovery.outcome import Outcome
from dagman.training.recovery.saving import Saver
from dagman.training.recovery.unreadable import Unreadable
from dagman.training.resources.interruption import LONG_STEP, StopRequestedError, interruptible
from dagman.training.resources.loading import load_steps
from dagman.training.resources.memory import MemoryEstimate, check_estimate
from dagman.training.run import Run, rewind_run, write_gallery, write_note, write_summary
from dagman.training.start.adoption import Part, adopt_weights
from dagman.training.start.record import read_start, remember_start, write_start
from dagman.training.start.source import Source
from dagman.training.summary import Pace, time_step
from dagman.training.views import ViewDataset, sample_intensities

Event = Callable[[str, dict[str, Any]], None]


class Trainer:
    """Takes a learner to the last step of a run, and writes the run folder.

    Args:
        learner: The networks, their targets and optimiser.
        dataset: Views by step.
        folder: The run folder.
        workers: Processes that read views; 0 reads them in this one.
        state: Values saved in checkpoints beside the weights (fingerprint of the store, ...).
        on_event: Called with an event's name and values ("step", "warning", "checkpoint").
        estimate: The memory estimate, which is checked after the first micro-batch.
    """

    def __init__(
        self,
        learner: Learner,
        dataset: ViewDataset,
        folder: Path,
        *,
        workers: int,
        state: dict[str, Any],
        on_event: Event,
        estimate: MemoryEstimate | None = None,
    ) -> None:
        self.learner, self.dataset, self.folder, self.workers = learner, dataset, folder, workers
        self.settings, self.group = learner.settings, learner.group
        self.state, self.on_event, self.estimate = state, on_event, estimate
        self.step = 0
        self.unread: tuple[Outcome, float, float, dict[str, str]] | None = None
        """A step whose losses have not been read yet: outcome, seconds, seconds waited for views, unreadable scans with reasons."""
        self.ending = Ending(self.group)
        self.warned: set[str] = set()
        self.skipped = {step - 1 for step in list_broken(folder)}
        self.unreadable = Unreadable(folder, len(dataset.usable), self.settings.train.unreadable, self.group)
        self.first_mean = 0.0
        self.saver = Saver(
            folder,
            self.settings.train.keep_checkpoints,
            on_written=lambda step: on_event("checkpoint", {"step": step}),
            on_full_disk=self._report_full_disk,
        )

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one, and drop what the run had written after it."""
        if not list_checkpoints(self.folder):
            if self.group.writes:
                rewind_run(self.folder, 0, ())
            return
        values = self.learner.load(self.folder)
        self.step = int(values["step"])
        self.warned = set(values["warned"])
        if self.step < self.settings.train.steps and self.group.writes:
            rewind_run(self.folder, self.step, self.warned)

    def start_from(self, source: Source) -> list[Part]:
        """Take the initial weights from a source and save them as checkpoint 0; returns what was done with each part."""
        learner = self.learner
        parts = adopt_weights(learner.student, learner.teacher, learner.targets, source)
        if any(part.name == "reconstruction" and part.state == "fresh" for part in parts):
            learner.start_reconstruction(sample_intensities(self.dataset).mean().item())
        if self.group.writes:
            write_start(self.folder, source, parts)
            self._save_state()
        return parts

    def train(self) -> int:
        """Train to the last step, or until a process is asked to stop; returns the steps done. Leaves a checkpoint either way."""
        if self.step == self.settings.train.steps:
            return self.step
        self.first_mean = self.group.broadcast(self._measure_mean() if self.group.writes else 0.0)
        # A run that continues from another has its initial weights in a checkpoint of step 0.
        if not self.group.broadcast(list_checkpoints(self.folder)):
            self.learner.start_reconstruction(self.first_mean)
        with self.learner.joined(), contextlib.closing(self.saver):
            while (broken := self._train_on()) is not None:
                self._go_back(broken)
        return self.step

    def _train_on(self) -> Broken | None:
        """Take steps until the end, or until the loss or gradient of one is not finite, which is returned."""
        train, learner = self.settings.train, self.learner
        writer = self._begin_writing() if self.group.writes else None
        first, pace, seconds = self.step, Pace(), math.inf
        batches = load_steps(self.dataset, self.step, self.workers, self.skipped, pinned=learner.device.type == "cuda")
        self.unread = None
        while self.step < train.steps and not self.ending.is_due():
            step, before = self.step, self.learner.targets.state()
            # An evaluation, and the row of a skipped step, come after the step before has been read.
            due = step % train.monitor_every == 0 or step in self.skipped
            if due and (broken := self._read(writer, pace)) is not None:
                return broken
            try:
                # A long step is abandoned when a stop is requested, unless other ranks wait for it; the first may be long.
                # A compiled graph has no place for the hooks that do this.
                leaves = seconds > LONG_STEP and self.group.size == 1 and learner.compiled == "off"
                left = [learner.student, learner.teacher] if leaves else []
                with interruptible(left, lambda: self.ending.asked is not None):
                    # ----------------------------------------------- once in a while
                    self.group.move(step, 0)
                    if writer and step % train.monitor_every == 0:
                        self.on_event("progress", {"text": f"step {step} of {train.steps}: evaluating the validation views"})
                        self._evaluate(*writer)
                    if step in self.skipped:
                        self._skip()
                        continue

                    # ----------------------------------------------- a step
                    self.group.move(step, 1)
                    began = time.perf_counter()
                    batch = next(batches)
                    pairs = learner.draw_pairs(batch, step, self.dataset.own)
                    waited = time.perf_counter() - began
                    self.group.move(step, 2)
                    self.group.communicated = 0
                    outcome = learner.advance(pairs, step, functools.partial(self._note_part, step, checked=step == first))
            except StopRequestedError:
                learner.targets.restore(*before)
                break

            # ------------------------------------------------------- what is written
            # With train.read_after=1 the device computes this step while the host reads the one before.
            if (broken := self._read(writer, pace)) is not None:
                return broken
            self.step, seconds = step + 1, time.perf_counter() - began
            self.unread = outcome, seconds, waited, batch.get("unreadable", {})
            if learner.gate is None and (broken := self._read(writer, pace)) is not None:
                return broken
            if self.step % train.checkpoint_every == 0 and self.step < train.steps:
                if (broken := self._read(writer, pace)) is not None:
                    return broken
                if writer and not self.ending.is_due():
                    self._save()
        if (broken := self._read(writer, pace)) is not None:
            return broken
        if writer:
            self._end_writing(*writer)
        self.group.wait()
        return None

    def _read(self, writer: tuple[Validation, Curves] | None, pace: Pace) -> Broken | None:
        """Read the outstanding step, if there is one, and write its rows; if it is not finite, return what is to be saved."""
        if self.unread is None:
            return None
        (outcome, seconds, waited, unreadable), self.unread = self.unread, None
        row, step = self.learner.read(outcome), outcome.step + 1
        if isinstance(row, Broken):
            self.step = outcome.step
            if writer:
                writer[1].close()
            return row
        waited = self._settle(waited, unreadable, step)
        timing = time_step(self.settings, step, seconds, waited, self.learner.device.type, self.group)
        if not writer:
            return None
        append_row(self.folder / "metrics.jsonl", row)
        append_row(self.folder / "timing.jsonl", timing)
        writer[1].add(step, row | timing)
        self.saver.follow()
        self.health.add_step(row)
        self.health.add_wait(timing["waiting_share"])
        self.on_event("step", row | timing)
        if text := pace.add(seconds, self.settings.train.steps - step, timing):
            self.on_event("choice", {"text": text})
        return None

    def _measure_mean(self) -> float:
        """Mean intensity of the first views, which the reconstruction starts at."""
        needed = self.learner.student.reconstruction is not None and self.step == 0
        return sample_intensities(self.dataset).mean().item() if needed else 0.0

    def _skip(self) -> None:
        """Skip a step that was not finite before."""
        self.step += 1
        if self.group.writes:
            append_row(self.folder / "metrics.jsonl", {"step": self.step, "skipped": True})

    def _go_back(self, broken: Broken) -> None:
        """Save a step that is not finite, and return to the last checkpoint to skip it from there; RunError after too many."""
        allowed, number = self.settings.train.skips, len(self.skipped) + 1
        scans: list[str] = []
        if self.group.writes:
            self.saver.follow(wait=True)
            scans = keep_broken(self.folder, broken, self.dataset, self.settings, self._list_state())
        problem = explain_broken(self.folder, broken.step + 1, scans)
        if number > allowed:
            if self.group.writes:
                self._warn([("not-finite", problem.note)])
            before = f"; {allowed} such steps were skipped before" if allowed else ""
            with self.group.together():
                raise RunError(problem.what + before, where=self.folder, do=problem.do)
        self.skipped.add(broken.step)
        if not self.group.broadcast(list_checkpoints(self.folder)):
            self.learner.begin_again()
            self.learner.start_reconstruction(self.first_mean)
            self.step = 0
            self.warned.clear()
        self.resume()
        if self.group.writes:
            text = f"{problem.what[:1].upper()}{problem.what[1:]}: the run returned to step {self.step}, and skips the failed step "
            text += f"({number} of at most {allowed}). {problem.do}."
            write_note(self.folder, broken.step, f"skipped-{broken.step + 1}", text)
            self.on_event("warning", {"step": broken.step + 1, "key": "skipped", "text": text})

    def _begin_writing(self) -> tuple[Validation, Curves]:
        """The fixed validation views and the curves, which only the writing process has."""
        validation = Validation(self.settings, self.dataset, self.learner.method, self.learner.device)
        self.health = self._start_health()
        return validation, Curves(self.folder, self.step, self.settings)

    def _end_writing(self, validation: Validation, curves: Curves) -> None:
        if self.step == self.settings.train.steps:
            self._evaluate(validation, curves)
        self.saver.follow(wait=True)
        # A run that was stopped in its first step has nothing to save.
        if list_checkpoints(self.folder)[-1:] != [self.step] and self.step > 0:
            self._save()
            self.saver.follow(wait=True, last=True)
        curves.close()

    def _settle(self, waited: float, unreadable: dict[str, str], step: int) -> float:
        """Agree with the other ranks after a step; returns the mean seconds waited. unreadable: this rank's scans and reasons."""
        waits, lost = self.ending.settle(waited, len(unreadable))
        if lost:
            warnings = self.unreadable.add(unreadable, step)
            self._warn(warnings if self.group.writes else [])
        return waits

    def _note_part(self, step: int, done: int, total: int, *, checked: bool) -> None:
        self.on_event("progress", {"text": f"step {step + 1} of {self.settings.train.steps}: part {done} of {total}"})
        if checked and self.estimate is not None and done == total // 2 + 1:
            peak = peak_memory_gib(self.learner.device.type) * 2**30
            self.on_event("choice", {"text": check_estimate(self.estimate, peak)})

    def _evaluate(self, validation: Validation, curves: Curves) -> None:
        learner = self.learner
        with learner.autocast(), learner.uncompiled():
            scheduled = assembly.schedule_temperature(self.settings, self.step)
            row, gallery = validation.evaluate(learner.student, learner.teacher, learner.targets, scheduled)
        row = {"step": self.step, **row}
        append_row(self.folder / "monitors.jsonl", row)
        write_gallery(self.folder, self.step, gallery, validation.sources)
        curves.add_monitor(self.step, row)
        self.health.add_evaluation(row)
        judged = self.health.judge()
        if self.step >= FRESH * self.settings.train.steps:
            self._warn(list_warnings(judged))
        write_summary(self.folder, self.step, self.settings.train.steps, self.health.last_step, judged)
        self.on_event("monitor", row)
        self.on_event("verdict", {"step": self.step, **sum_up(judged).to_json()})

    @functools.cached_property
    def cohort(self) -> Cohort:
        """The scans and patients that the run learns from."""
        return describe_cohort(self.dataset.store, self.dataset.usable)

    def _start_health(self) -> Health:
        """The verdicts so far; those of a resumed run are read from its folder."""
        return follow_run(Run(self.folder), self.cohort) if self.step else Health(settings=self.settings, cohort=self.cohort)

    def _warn(self, warnings: list[tuple[str, str]]) -> None:
        for key, text in warnings:
            if key not in self.warned:
                self.warned.add(key)
                write_note(self.folder, self.step, key, text)
                self.on_event("warning", {"step": self.step, "key": key, "text": text})

    def _save(self) -> None:
        """Start writing a checkpoint from a copy, in the background."""
        teacher = None if self.learner.teacher is None else self._describe("teacher")
        self.saver.save(self.step, self.learner.copy(), self._describe("student"), teacher, self._list_state())

    def _report_full_disk(self, step: int) -> None:
        text = (
            f"The disk is full: no checkpoint of step {step}. The previous one is intact; the next one will be attempted as usual."
        )
        self._warn([(f"checkpoint-{step}", text)])

    def _list_state(self) -> dict[str, Any]:
        return {**self.state, "warned": sorted(self.warned)}

    def _save_state(self) -> None:
        write_checkpoint(self.folder, self.step, self.learner.copy(), self._list_state(), self.settings.train.keep_checkpoints)

    def _describe(self, weights: Literal["teacher", "student"]) -> EncoderConfig:
        config = assembly.describe_encoder(self.settings, self.dataset, self.step, weights)
        return remember_start(config, read_start(self.folder), self.cohort.patients, str(self.state.get("store", "")))
