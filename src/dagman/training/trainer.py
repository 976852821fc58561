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
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dagman.devices import peak_memory_gib
from dagman.encoder.folder import EncoderConfig, write_encoder
from dagman.errors import RunError
from dagman.method.networks import Network, unit_grid
from dagman.method.noise import count_noise_draws
from dagman.method.schedules import freeze_last_layer, learning_rate, teacher_momentum, teacher_temperature
from dagman.method.step import ViewPair
from dagman.method.targets import Targets
from dagman.method.teacher import update_teacher
from dagman.model.intensity import to_unit_ranges
from dagman.records.journal import append_row
from dagman.settings import Settings
from dagman.training import assembly
from dagman.training.accumulation import StepLosses, accumulate_gradients
from dagman.training.augmentation import augment_views, is_active, mirror_boxes
from dagman.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from dagman.training.draws import draw_drop_path, draw_masking, draw_noise
from dagman.training.monitoring.cohort import Cohort, describe_cohort
from dagman.training.monitoring.curves import Curves
from dagman.training.monitoring.health import Health, follow_run, list_warnings
from dagman.training.monitoring.validation import Validation
from dagman.training.monitoring.verdicts import FRESH, sum_up
from dagman.training.parallel.group import Group
from dagman.training.parallel.replicas import replicate
from dagman.training.parallel.sharing import size_micro_batch
from dagman.training.resources.interruption import LONG_STEP, StopRequestedError, interruptible
from dagman.training.resources.memory import MemoryEstimate, check_estimate
from dagman.training.run import Run, rewind_run, write_gallery, write_note, write_summary
from dagman.training.start.adoption import Part, adopt_weights
from dagman.training.start.record import read_start, remember_start, write_start
from dagman.training.start.source import Source
from dagman.training.summary import describe_pace
from dagman.training.views import ViewDataset, load_steps, sample_intensities

PACED_STEPS = 5
"""Steps after which a run says how long it will take; the first one, which warms up, is left out."""
Event = Callable[[str, dict[str, Any]], None]
Stop = Literal["interrupt", "requeue"]
"""Why a run ends before its last step: someone wants it to, or a cluster takes its place away."""


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
        self.device, self.precision, self.workers, self.state, self.on_event = (
            torch.device(device),
            precision,
            workers,
            state,
            on_event,
        )
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
        prototypes = int(settings.projector.prototypes)
        self.targets = Targets(assembly.compose_rules(settings), prototypes, assembly.name_projectors(settings), self.device)
        self.step = 0
        self.asked: Stop | None = None
        self.stopped: Stop | None = None
        self.warned: set[str] = set()

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

    def stop(self, reason: Stop) -> None:
        """Ask for an end after the current step, of this and of all other processes of the run."""
        self.asked = reason

    def train(self) -> int:
        """Run to the last step, or until a process is asked to stop; returns the steps done. A checkpoint is left either way."""
        train = self.settings.train
        if self.step == train.steps:
            return self.step
        writer = self._begin_writing() if self.group.writes else None
        # Broadcasts the weights of the first process, whose reconstruction head has learned where to start.
        self.replica = replicate(self.student, self.group, assembly.list_untrained(self.settings))
        first, paces, seconds = self.step, [], math.inf
        batches = load_steps(self.dataset, self.step, self.workers)
        while self.step < train.steps and not self._is_stopped():
            step, before = self.step, self.targets.state()
            try:
                # A long step, which the first may be, is left when a stop is requested, unless other ranks wait for it.
                left = [self.student, self.teacher] if seconds > LONG_STEP and self.group.size == 1 else []
                with interruptible(left, lambda: self.asked is not None):
                    # ----------------------------------------------- once in a while
                    self.group.move(step, 0)
                    if writer and step % train.monitor_every == 0:
                        self.on_event("progress", {"text": f"step {step} of {train.steps}: measuring the validation views"})
                        self._evaluate(*writer)

                    # ----------------------------------------------- a step
                    self.group.move(step, 1)
                    began = time.perf_counter()
                    pairs = self._draw_pairs(next(batches), step)
                    waited = time.perf_counter() - began
                    self.group.move(step, 2)
                    self.group.communicated = 0
                    row = self._advance(pairs, step, checked=step == first)
                    self.step = step + 1
            except StopRequestedError:
                self.targets.restore(*before)
                break

            # ------------------------------------------------------- what is written
            seconds = time.perf_counter() - began
            timing = self._time(seconds, self._settle(waited))
            if not writer:
                continue
            append_row(self.folder / "metrics.jsonl", row)
            append_row(self.folder / "timing.jsonl", timing)
            writer[1].add(self.step, row | timing)
            self.health.add_step(row)
            self.health.add_wait(timing["waiting_share"])
            self.on_event("step", row | timing)
            if first < self.step <= first + PACED_STEPS:
                paces.append(seconds)
                if len(paces) == PACED_STEPS:
                    self.on_event("choice", {"text": describe_pace(paces[1:], train.steps - self.step, timing["memory_gib"])})
            if self.step % train.checkpoint_every == 0 and self.step < train.steps and not self._is_stopped():
                self._save()
        if writer:
            self._end_writing(*writer)
        self.group.wait()
        return self.step

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
        # A run that goes on from another has its first weights in a checkpoint of step 0.
        if self.student.reconstruction is not None and not list_checkpoints(self.folder):
            self.student.reconstruction.start_at(sample_intensities(self.dataset).mean().item())
        validation = Validation(self.settings, self.dataset, self.method, self.device)
        self.health = self._start_health()
        return validation, Curves(self.folder, self.step, self.settings)

    def _end_writing(self, validation: Validation, curves: Curves) -> None:
        if self.step == self.settings.train.steps:
            self._evaluate(validation, curves)
        # Of a run that was left in its first step there is nothing to keep.
        if list_checkpoints(self.folder)[-1:] != [self.step] and self.step > 0:
            self._save()
        curves.close()

    def _is_stopped(self) -> bool:
        if self.group.size == 1:
            self.stopped = self.asked
        return self.stopped is not None

    def _settle(self, waited: float) -> float:
        """Agree with the other processes on an end, at one step for all; the mean of what they waited, in seconds."""
        if self.group.size == 1:
            return waited
        interrupts, requeues, waits = self.group.add_up([self.asked == "interrupt", self.asked == "requeue", waited])
        self.stopped = "interrupt" if interrupts else "requeue" if requeues else None
        return waits / self.group.size

    def _advance(self, pairs: Sequence[ViewPair], step: int, *, checked: bool = False) -> dict[str, Any]:
        """One optimiser step; the row for `metrics.jsonl`. checked: the estimate of memory is compared with its first part."""
        s, steps = self.settings, self.settings.train.steps
        lr = learning_rate(step, steps, peak=float(s.optim.lr), end=s.optim.min_lr, warmup=s.optim.warmup)
        momentum = teacher_momentum(step, steps, start=float(s.teacher.momentum), end=float(s.teacher.momentum_end))
        scheduled = self._scheduled_temperature(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            notify = functools.partial(self._note_part, step, checked=checked)
            losses = accumulate_gradients(
                self.replica, self.teacher, pairs, self.method, self.targets, scheduled, self.group, notify
            )
        if freeze_last_layer(step, steps, epochs=s.train.freeze_epochs):
            for parameter in assembly.list_frozen(self.student):
                parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), s.optim.clip)
        self._refuse_nonfinite(losses, norm, step)
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
        """The step's micro-batches; pair i of a step has the same draws however it is cut."""
        settings, seed = self.settings, self.settings.seed
        stored = torch.stack([batch["u"], batch["v"]], dim=1).to(self.device, non_blocking=True)
        ranges = batch["range"].repeat_interleave(2, dim=0)
        views, inside = to_unit_ranges(stored.flatten(0, 1), ranges), batch["inside"]
        numbers = range(2 * self.dataset.own.start, 2 * self.dataset.own.stop)
        if is_active(settings.view):
            views = augment_views(views, settings.view, seed, step, numbers)
            boxes = mirror_boxes(inside.flatten(0, 1), settings.view.side, settings.view, seed, step, numbers)
            inside = boxes.unflatten(0, (-1, 2))
        views = views.unflatten(0, (-1, 2))
        grid = unit_grid((settings.view.side,) * 3)
        drawn = {
            "masking": draw_masking(seed, step, numbers, math.prod(grid)).unflatten(0, (-1, 2)),
            "noise": draw_noise(seed, step, numbers, count_noise_draws(grid, settings.teacher.granularity)).unflatten(0, (-1, 2)),
        }
        drop_path = draw_drop_path(seed, step, numbers, self.student.encoder.branches).unflatten(1, (-1, 2)).to(self.device)
        drawn = {name: values.to(self.device, non_blocking=True) for name, values in drawn.items()}
        whole = ViewPair(views=views, drop_path=drop_path, inside=inside, **drawn)
        size = size_micro_batch(settings, self.group.size)
        return [whole.take(slice(first, first + size)) for first in range(0, len(views), size)]

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """bfloat16 for the networks' products, if so chosen; losses, centres, softmax and EMA stay float32 by themselves."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def _scheduled_temperature(self, step: int) -> float:
        t = self.settings.teacher
        return teacher_temperature(
            step, self.settings.train.steps, start=t.temperature_start, end=t.temperature_end, warmup=t.temperature_warmup
        )

    def _evaluate(self, validation: Validation, curves: Curves) -> None:
        with self.autocast():
            row, gallery = validation.evaluate(self.student, self.teacher, self.targets, self._scheduled_temperature(self.step))
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
        # The encoder first: whoever finds a checkpoint finds an encoder that is not older.
        self._export()
        self._save_state()
        self.on_event("checkpoint", {"step": self.step})

    def _save_state(self) -> None:
        save_checkpoint(
            self.folder,
            self.step,
            self.student,
            self.teacher,
            self.optimizer,
            self.targets,
            {**self.state, "warned": sorted(self.warned)},
            self.settings.train.keep_checkpoints,
        )

    def _export(self) -> None:
        """Write the teacher to `encoder/` and the student to `encoder-student/`; without a teacher the student to `encoder/`."""
        student = "encoder" if self.teacher is None else "encoder-student"
        write_encoder(self.folder / student, self._describe("student"), self.student.state_dict())
        if self.teacher is not None:
            write_encoder(self.folder / "encoder", self._describe("teacher"), self.teacher.state_dict())

    def _describe(self, weights: Literal["teacher", "student"]) -> EncoderConfig:
        config = assembly.describe_encoder(self.settings, self.dataset, self.step, weights)
        return remember_start(config, read_start(self.folder), self.cohort.patients, str(self.state.get("store", "")))

    def _time(self, seconds: float, waited: float) -> dict[str, Any]:
        views = self.settings.train.batch
        return {
            "step": self.step,
            "seconds": round(seconds, 4),
            "views_per_s": round(views / seconds, 3),
            "voxels_per_s": round(views * self.settings.view.side**3 / seconds),
            "waiting_share": round(waited / seconds, 4),
            "memory_gib": round(peak_memory_gib(self.device.type), 3),
            **({"communicated_mib": round(self.group.communicated / 2**20, 3)} if self.group.size > 1 else {}),
        }

    def _refuse_nonfinite(self, losses: StepLosses, norm: Tensor, step: int) -> None:
        if torch.isfinite(losses.total) and torch.isfinite(norm):
            return
        scans = sorted({pair[0].scan for pair in self.dataset.places(step)})
        what = f"Losses or gradient: not finite at step {step + 1}. Lower optim.lr, or check the scans of that step."
        if self.group.writes:
            self._warn([("not-finite", what)])
        with self.group.together():
            raise RunError(
                f"the loss or its gradient is not finite at step {step + 1}, on scans {', '.join(scans)}",
                where=self.folder,
                do="Check these scans, or lower optim.lr; the last checkpoint is whole",
            )
