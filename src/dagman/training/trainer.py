"""The loop: reads views, accumulates gradients, moves the weights; from time to time evaluates, saves and reports."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.parallel import DistributedDataParallel

from dagman.devices import peak_memory_gib
from dagman.encoder.folder import EncoderConfig
from dagman.errors import RunError
from dagman.method.networks import Network
from dagman.method.schedules import freeze_last_layer, learning_rate, teacher_momentum
from dagman.method.step import ViewPair
from dagman.method.teacher import update_teacher
from dagman.records.journal import append_row
from dagman.settings import Settings
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients
from dagman.training.batches import draw_pairs
from dagman.training.checkpoints import copy_state, list_checkpoints, load_checkpoint, write_checkpoint
from dagman.training.monitoring.cohort import Cohort, describe_cohort
from dagman.training.monitoring.curves import Curves
from dagman.training.monitoring.health import Health, follow_run, list_warnings
from dagman.training.monitoring.validation import Validation
from dagman.training.monitoring.verdicts import FRESH, sum_up
from dagman.training.parallel.ending import Ending
from dagman.training.parallel.group import Group
from dagman.training.parallel.replicas import replicate
from dagman.training.parallel.sharing import size_micro_batch
from dagman.training.recovery.broken import Broken, explain_broken, keep_broken, list_broken
from dagman.training.recovery.saving import Saver
from dagman.training.recovery.unreadable import Unreadable
from dagman.training.resources.interruption import LONG_STEP, StopRequestedError, interruptible
from dagman.training.resources.memory import MemoryEstimate, check_estimate
from dagman.training.run import Run, rewind_run, write_gallery, write_note, write_summary
from dagman.training.start.adoption import Part, adopt_weights
from dagman.training.start.record import read_start, remember_start, write_start
from dagman.training.start.source import Source
from dagman.training.summary import Pace, time_step
from dagman.training.views import ViewDataset, load_steps, sample_intensities

Event = Callable[[str, dict[str, Any]], None]


class Trainer:
    """All state of a run between steps: networks, optimiser, targets; `train` takes it to the last step.

    Args:
        settings: Resolved settings.
        dataset: Views by step.
        folder: The run folder.
        device: As chosen by `dagman.devices`.
        precision: "fp32" or "bf16".
        workers: Processes that read views; 0 reads them in this one.
        state: What is saved beside the weights (fingerprint of the store, ...).
        on_event: Called with an event's name and values ("step", "warning", "checkpoint").
        group: The processes that share each step; one alone by default. The first of them writes the run.
        estimate: Of the memory, which the first micro-batch is to confirm.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: ViewDataset,
        folder: Path,
        *,
        device: str,
        precision: str,
        workers: int,
        state: dict[str, Any],
        on_event: Event,
        group: Group | None = None,
        estimate: MemoryEstimate | None = None,
    ) -> None:
        self.estimate = estimate
        self.settings, self.dataset, self.folder = settings, dataset, folder
        self.group = group or Group()
        self.device, self.precision, self.workers = torch.device(device), precision, workers
        self.state, self.on_event = state, on_event
        self.student, self.teacher = assembly.build_networks(settings)
        self.replica: Network | DistributedDataParallel = self.student
        self.student.to(self.device).train()
        if self.teacher is not None:
            self.teacher.to(self.device)
        self.method = assembly.compose_method(settings)
        groups = assembly.group_parameters(self.student, settings.optim.weight_decay)
        # One kernel for all weights on a card; on a CPU the loop stays, whose bits older runs were made with.
        fused = torch.device(device).type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, settings.optim.beta2), fused=fused)
        self.targets = assembly.build_targets(self.settings, self.device)
        self.step = 0
        self.ending = Ending(self.group)
        self.warned: set[str] = set()
        self.skipped = {step - 1 for step in list_broken(folder)}
        self.unreadable = Unreadable(folder, len(dataset.usable), settings.train.unreadable, self.group)
        self.first_mean = 0.0
        self.saver = Saver(
            folder,
            settings.train.keep_checkpoints,
            on_written=lambda step: on_event("checkpoint", {"step": step}),
            on_full_disk=self._report_full_disk,
        )

    def resume(self) -> None:
        """Take over the newest checkpoint, if there is one yet, and drop what the run had written after it."""
        if not list_checkpoints(self.folder):
            if self.group.writes:
                rewind_run(self.folder, 0, ())
            return
        values = load_checkpoint(self.folder, self.student, self.teacher, self.optimizer, self.targets)
        self.step = int(values["step"])
        self.warned = set(values["warned"])
        if self.step < self.settings.train.steps and self.group.writes:
            rewind_run(self.folder, self.step, self.warned)

    def start_from(self, source: Source) -> list[Part]:
        """Take the first weights from a source, and keep them as the checkpoint of step 0; what became of each part."""
        parts = adopt_weights(self.student, self.teacher, self.targets, source)
        fresh = {part.name for part in parts if part.state == "fresh"}
        if self.student.reconstruction is not None and "reconstruction" in fresh:
            self.student.reconstruction.start_at(sample_intensities(self.dataset).mean().item())
        if self.group.writes:
            write_start(self.folder, source, parts)
            self._save_state()
        return parts

    def train(self) -> int:
        """Run to the last step, or until a process is asked to stop; returns the steps done. A checkpoint is left either way."""
        if self.step == self.settings.train.steps:
            return self.step
        self.first_mean = self.group.broadcast(self._measure_mean() if self.group.writes else 0.0)
        # A run that goes on from another has its first weights in a checkpoint of step 0.
        if not self.group.broadcast(list_checkpoints(self.folder)):
            self._start_reconstruction()
        self.replica = replicate(self.student, self.group, assembly.list_untrained(self.settings))
        while (broken := self._train_on()) is not None:
            self._go_back(broken)
        return self.step

    def _train_on(self) -> Broken | None:
        """Steps from the present one on, to the end, or to one whose loss or gradient is not finite."""
        train = self.settings.train
        writer = self._begin_writing() if self.group.writes else None
        first, pace, seconds = self.step, Pace(), math.inf
        batches = load_steps(self.dataset, self.step, self.workers, self.skipped)
        while self.step < train.steps and not self.ending.is_due():
            step, before = self.step, self.targets.state()
            try:
                # A long step, which the first may be, is left when a stop is requested, unless other ranks wait for it.
                left = [self.student, self.teacher] if seconds > LONG_STEP and self.group.size == 1 else []
                with interruptible(left, lambda: self.ending.asked is not None):
                    # ----------------------------------------------- once in a while
                    self.group.move(step, 0)
                    if writer and step % train.monitor_every == 0:
                        self.on_event("progress", {"text": f"step {step} of {train.steps}: measuring the validation views"})
                        self._evaluate(*writer)
                    if step in self.skipped:
                        self._skip()
                        continue

                    # ----------------------------------------------- a step
                    self.group.move(step, 1)
                    began = time.perf_counter()
                    batch = next(batches)
                    pairs = self._draw_pairs(batch, step)
                    waited = time.perf_counter() - began
                    self.group.move(step, 2)
                    self.group.communicated = 0
                    row = self._advance(pairs, step, checked=step == first)
            except StopRequestedError:
                self.targets.restore(*before)
                break
            if isinstance(row, Broken):
                if writer:
                    writer[1].close()
                return row
            self.step = step + 1

            # ------------------------------------------------------- what is written
            seconds = time.perf_counter() - began
            waited = self._settle(waited, batch.get("unreadable", {}))
            timing = time_step(self.settings, self.step, seconds, waited, self.device.type, self.group)
            if not writer:
                continue
            append_row(self.folder / "metrics.jsonl", row)
            append_row(self.folder / "timing.jsonl", timing)
            writer[1].add(self.step, row | timing)
            self.saver.follow()
            self.health.add_step(row)
            self.health.add_wait(timing["waiting_share"])
            self.on_event("step", row | timing)
            if text := pace.add(seconds, train.steps - self.step, timing["memory_gib"]):
                self.on_event("choice", {"text": text})
            if self.step % train.checkpoint_every == 0 and self.step < train.steps and not self.ending.is_due():
                self._save()
        if writer:
            self._end_writing(*writer)
        self.group.wait()
        return None

    def _measure_mean(self) -> float:
        """Mean intensity of the first views, where the reconstruction begins."""
        needed = self.student.reconstruction is not None and self.step == 0
        return sample_intensities(self.dataset).mean().item() if needed else 0.0

    def _start_reconstruction(self) -> None:
        if self.student.reconstruction is not None:
            self.student.reconstruction.start_at(self.first_mean)

    def _skip(self) -> None:
        """Leave out a step that was not finite before."""
        self.step += 1
        if self.group.writes:
            append_row(self.folder / "metrics.jsonl", {"step": self.step, "skipped": True})

    def _go_back(self, broken: Broken) -> None:
        """Keep what a step broke on, and go back to the last checkpoint, to skip the step from there; RunError after too many."""
        allowed, number = self.settings.train.skips, len(self.skipped) + 1
        scans: list[str] = []
        if self.group.writes:
            self.saver.follow(wait=True)
            scans = keep_broken(self.folder, broken, self.dataset, self.settings, self._list_state())
        problem = explain_broken(self.folder, broken.step + 1, scans)
        if number > allowed:
            if self.group.writes:
                self._warn([("not-finite", problem.note)])
            before = f"; {allowed} such before were skipped" if allowed else ""
            with self.group.together():
                raise RunError(problem.what + before, where=self.folder, do=problem.do)
        self.skipped.add(broken.step)
        if not self.group.broadcast(list_checkpoints(self.folder)):
            self._begin_again()
        self.resume()
        if self.group.writes:
            text = f"{problem.what[:1].upper()}{problem.what[1:]}: the run went back to step {self.step} and skips it, "
            text += f"{number} of {allowed} times at most. {problem.do}."
            write_note(self.folder, broken.step, f"skipped-{broken.step + 1}", text)
            self.on_event("warning", {"step": broken.step + 1, "key": "skipped", "text": text})

    def _begin_again(self) -> None:
        """The state of step 0, where no checkpoint has been written."""
        student, teacher = assembly.build_networks(self.settings)
        self.student.load_state_dict(student.state_dict())
        if self.teacher is not None and teacher is not None:
            self.teacher.load_state_dict(teacher.state_dict())
        self.optimizer.state.clear()
        self.targets = assembly.build_targets(self.settings, self.device)
        self._start_reconstruction()
        self.step = 0
        self.warned.clear()

    def rehearse(self, steps: int) -> Iterator[tuple[float, float]]:
        """Take so many steps without writing anything; seconds of each, and how many of them were spent waiting for views."""
        batches = load_steps(self.dataset, 0, self.workers)
        for step in range(steps):
            began = time.perf_counter()
            pairs = self._draw_pairs(next(batches), step)
            waited = time.perf_counter() - began
            self._advance(pairs, step)
            yield time.perf_counter() - began, waited

    def _begin_writing(self) -> tuple[Validation, Curves]:
        """What the process that writes has besides: the fixed validation views and the curves."""
        validation = Validation(self.settings, self.dataset, self.method, self.device)
        self.health = self._start_health()
        return validation, Curves(self.folder, self.step, self.settings)

    def _end_writing(self, validation: Validation, curves: Curves) -> None:
        if self.step == self.settings.train.steps:
            self._evaluate(validation, curves)
        self.saver.follow(wait=True)
        # Of a run that was left in its first step there is nothing to keep.
        if list_checkpoints(self.folder)[-1:] != [self.step] and self.step > 0:
            self._save()
            self.saver.follow(wait=True, last=True)
        curves.close()

    def _settle(self, waited: float, unreadable: dict[str, str]) -> float:
        """What all processes agree on after a step; the mean of what they waited, in seconds. unreadable: Scan to reason, here."""
        waits, lost = self.ending.settle(waited, len(unreadable))
        if lost:
            warnings = self.unreadable.add(unreadable, self.step)
            self._warn(warnings if self.group.writes else [])
        return waits

    def _advance(self, pairs: Sequence[ViewPair], step: int, *, checked: bool = False) -> dict[str, Any] | Broken:
        """One optimiser step; the row for `metrics.jsonl`, or what is to be kept where it is not finite.

        checked: The estimate of memory is compared with the step's first part.
        """
        s, steps = self.settings, self.settings.train.steps
        lr = learning_rate(step, steps, peak=float(s.optim.lr), end=s.optim.min_lr, warmup=s.optim.warmup)
        momentum = teacher_momentum(step, steps, start=float(s.teacher.momentum), end=float(s.teacher.momentum_end))
        scheduled = assembly.schedule_temperature(self.settings, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        before = self.targets.state()
        with self.autocast():
            notify = functools.partial(self._note_part, step, checked=checked)
            losses = accumulate_gradients(
                self.replica, self.teacher, pairs, self.method, self.targets, scheduled, self.group, notify
            )
        if freeze_last_layer(step, steps, epochs=s.train.freeze_epochs):
            for parameter in assembly.list_frozen(self.student):
                parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), s.optim.clip)
        if not (torch.isfinite(losses.total) and torch.isfinite(norm)):
            found = {"total": losses.total, **losses.parts, "grad_norm": norm}
            return Broken(step, copy_state(self.student, self.teacher, self.optimizer, before), found)
        self.optimizer.step()
        if self.teacher is not None:
            update_teacher(self.teacher, self.student, momentum)
        return {
            "step": step + 1,
            "total": losses.total.item(),
            **{name: value.item() for name, value in losses.parts.items()},
            "lr": lr,
            "momentum": momentum,
            **{f"tau_{name}": value for name, value in losses.temperatures.items()},
            "grad_norm": norm.item(),
        }

    def _note_part(self, step: int, done: int, total: int, *, checked: bool) -> None:
        self.on_event("progress", {"text": f"step {step + 1} of {self.settings.train.steps}: part {done} of {total}"})
        if checked and self.estimate is not None and done == total // 2 + 1:
            peak = peak_memory_gib(self.device.type) * 2**30
            self.on_event("choice", {"text": check_estimate(self.estimate, peak)})

    def _draw_pairs(self, batch: dict[str, Any], step: int) -> list[ViewPair]:
        """The step's micro-batches of this process."""
        size = size_micro_batch(self.settings, self.group.size)
        return draw_pairs(batch, self.settings, step, self.dataset.own, self.student.encoder.branches, size, self.device)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """bfloat16 for the networks' products, if so chosen; losses, centres, softmax and EMA stay float32 by themselves."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def _evaluate(self, validation: Validation, curves: Curves) -> None:
        with self.autocast():
            scheduled = assembly.schedule_temperature(self.settings, self.step)
            row, gallery = validation.evaluate(self.student, self.teacher, self.targets, scheduled)
        row = {"step": self.step, **row}
        append_row(self.folder / "monitors.jsonl", row)
        write_gallery(self.folder, self.step, gallery)
        curves.add_monitor(self.step, row)
        self.health.add_look(row)
        judged = self.health.judge()
        if self.step >= FRESH * self.settings.train.steps:
            self._warn(list_warnings(judged))
        write_summary(self.folder, self.step, self.settings.train.steps, self.health.last_step, judged)
        self.on_event("monitor", row)
        self.on_event("verdict", {"step": self.step, **sum_up(judged).to_json()})

    @functools.cached_property
    def cohort(self) -> Cohort:
        """What the run learns from."""
        return describe_cohort(self.dataset.store, self.dataset.usable)

    def _start_health(self) -> Health:
        """The verdicts so far: of a run that is resumed, those of its folder."""
        return follow_run(Run(self.folder), self.cohort) if self.step else Health(settings=self.settings, cohort=self.cohort)

    def _warn(self, warnings: list[tuple[str, str]]) -> None:
        for key, text in warnings:
            if key not in self.warned:
                self.warned.add(key)
                write_note(self.folder, self.step, key, text)
                self.on_event("warning", {"step": self.step, "key": key, "text": text})

    def _save(self) -> None:
        """Begin to write a checkpoint from a copy; the steps go on beside it."""
        snapshot = copy_state(self.student, self.teacher, self.optimizer, self.targets.state())
        teacher = None if self.teacher is None else self._describe("teacher")
        self.saver.save(self.step, snapshot, self._describe("student"), teacher, self._list_state())

    def _report_full_disk(self, step: int) -> None:
        text = f"The disk is full: no checkpoint of step {step}. The one before is whole, and the next is tried in its turn."
        self._warn([(f"checkpoint-{step}", text)])

    def _list_state(self) -> dict[str, Any]:
        return {**self.state, "warned": sorted(self.warned)}

    def _save_state(self) -> None:
        snapshot = copy_state(self.student, self.teacher, self.optimizer, self.targets.state())
        write_checkpoint(self.folder, self.step, snapshot, self._list_state(), self.settings.train.keep_checkpoints)

    def _describe(self, weights: Literal["teacher", "student"]) -> EncoderConfig:
        config = assembly.describe_encoder(self.settings, self.dataset, self.step, weights)
        return remember_start(config, read_start(self.folder), self.cohort.patients, str(self.state.get("store", "")))
