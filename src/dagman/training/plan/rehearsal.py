"""`dagman pretrain --plan`: run a few steps in memory and estimate the cost of the whole run. Nothing is written."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student_t

from dagman import devices
from dagman.errors import RunError
from dagman.records.names import suggest_path
from dagman.settings import Settings, resolve_settings
from dagman.training.assembly import check_backbone
from dagman.training.learner import Learner
from dagman.training.monitoring.validation import Validation
from dagman.training.parallel.group import Group
from dagman.training.plan.energy import EnergyMeter
from dagman.training.recovery.outcome import Outcome
from dagman.training.resources.fitting import fit_memory
from dagman.training.resources.loading import load_steps
from dagman.training.resources.machine import choose_machine
from dagman.training.resources.memory import estimate_memory
from dagman.training.start.adoption import adopt_weights
from dagman.training.start.mixture import describe_shares, is_store, list_parts, open_stores, split_weight
from dagman.training.start.settling import load_asked, settle_modality, settle_spacing
from dagman.training.views import ViewDataset, find_usable, refuse_repetition, select_rows

STEPS, LEAST, PATIENCE = 9, 4, 60.0
"""Number of steps to run (the first is a warm-up); the minimum; and the seconds after which no further step starts."""
TRIED_STEPS = 2
"""Steps by which each micro-batch is judged: the fastest counts."""
FASTER = 1.05
"""Speed over that of the chosen micro-batch from which another one is suggested."""
SLOW_SHARE, LONG_HOURS = 0.05, 48.0
READING_SECONDS = 1.0
"""Seconds for which the reading of views is timed."""
SPARE = 2.0
"""Views that loader processes should be able to read, for each that the steps take."""
_ROW_BYTES, _GALLERY_VIEWS = 900, 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The estimated cost of a run on this machine.

    Attributes:
        steps, views: Steps of the run, and views per step.
        scans, device: Number of scans to train on, and the device.
        stores: A line on the share of each store; empty if there is only one.
        seconds: Seconds per step: mean and 95 % interval.
        hours: Hours for the whole run, evaluations included: from the mean and the two ends of the interval.
        waiting: Share of a step's time spent waiting for data.
        loaders, reading: Number of loader processes (0: the training process reads), and views per second that one of them reads.
        evaluation_seconds: Seconds per evaluation on the validation views.
        memory_gib: Peak memory per device, evaluation included (on the CPU: per process).
        disk_bytes: Checkpoints that are kept, encoders, curves and galleries.
        checkpoint_bytes: Bytes of one checkpoint.
        energy_kwh: Energy of the whole run by source, gpu or cpu; empty if the hardware does not measure it.
        micro_batches: Views per second by micro-batch, the chosen one first; None if it does not fit in memory.
        slow: What would be slow, in sentences with what to try.
    """

    steps: int
    views: int
    scans: int
    stores: tuple[str, ...]
    device: str
    measured_steps: int
    seconds: tuple[float, float, float]
    hours: tuple[float, float, float]
    waiting: float
    loaders: int
    reading: float
    evaluation_seconds: float
    memory_gib: float
    disk_bytes: int
    checkpoint_bytes: int
    energy_kwh: dict[str, float]
    micro_batches: dict[int, float | None]
    slow: tuple[str, ...]

    @property
    def best_micro_batch(self) -> int:
        """The fastest micro-batch; the chosen one unless another is at least 5 % faster."""
        chosen = next(iter(self.micro_batches))
        speeds = {size: speed for size, speed in self.micro_batches.items() if speed is not None}
        best = max(speeds, key=lambda size: speeds[size])
        return best if speeds[best] > FASTER * speeds.get(chosen, 0.0) else chosen

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "best_micro_batch": self.best_micro_batch}


@dataclass(kw_only=True)
class Rehearsal:
    """A run that exists only in memory: it takes steps and writes nothing."""

    learner: Learner
    dataset: ViewDataset
    workers: int

    def take(self, steps: int) -> Iterator[tuple[float, float]]:
        """Take a number of steps; yields the seconds of each, and how many of them were spent waiting for views."""
        learner, length = self.learner, self.learner.settings.train.steps
        batches = load_steps(self.dataset, 0, self.workers, pinned=learner.device.type == "cuda")
        unread: Outcome | None = None
        for step in range(steps):
            began = time.perf_counter()
            pairs = learner.draw_pairs(next(batches), step, self.dataset.own)
            waited = time.perf_counter() - began
            # Schedules end with the run, which may be shorter than what is measured.
            outcome = learner.advance(pairs, step % length)
            if unread is not None:
                unread.read()
            unread = outcome
            if learner.gate is None or step == steps - 1:
                unread.read()
            yield time.perf_counter() - began, waited


def prepare_rehearsal(
    source: str | Path | Sequence[str | Path],
    size: str | None = None,
    method: str | None = None,
    config: str | Path | None = None,
    assignments: Iterable[str] = (),
    continue_from: str | None = None,
) -> Rehearsal:
    """Build in memory what `pretrain` would train with these arguments, with a micro-batch that fits: for `plan_pretraining`.

    Raises:
        RunError: The source is not a store, this is one of several processes, or nothing fits in the free memory.
        SettingsError, StoreError, EncoderError: As `pretrain`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError(
            "--plan needs a single process", do="Run without torchrun, and divide the step time by the number of devices"
        )
    parts = [split_weight(path) for path in ([source] if isinstance(source, str | Path) else source)]
    for path, _ in parts:
        if not path.exists():
            raise RunError("does not exist", where=path, do=suggest_path(path, "Check the path"))
        if not is_store(path):
            raise RunError("--plan needs a store", where=path, do="Prepare the scans first: dagman prepare SCANS --out STORE")
    settings, given, start, refused = load_asked(size, method, config, assignments, continue_from)
    if refused is not None:
        raise refused
    check_backbone(settings)
    settings, _ = resolve_settings(settings)
    store = open_stores(parts)
    settings = settle_modality(settle_spacing(settings, store, asked="view.spacing" in given), store)
    usable, _ = find_usable({row.id: row.shape for row in select_rows(store.rows, settings.view)}, settings.view)
    refuse_repetition(settings, len(usable))
    shares = list_parts(store, usable)
    machine = choose_machine(settings)
    device, precision = machine.device.value, machine.precision.value
    settings, _, _ = fit_memory(settings, [], device, precision, Group(), fixed="train.micro_batch" in given)
    machine.prepare()
    train = settings.train
    length = max(train.steps, STEPS)
    dataset = ViewDataset(store, usable, settings.view, train.batch, settings.seed, length, parts=shares)
    learner = Learner(settings, device=device, precision=precision, **machine.list_fast_paths())
    if start is not None:
        adopt_weights(learner.student, learner.teacher, learner.targets, start)
    return Rehearsal(learner=learner, dataset=dataset, workers=machine.loaders.value)


def plan_pretraining(rehearsal: Rehearsal) -> Plan:
    """Take a few steps in memory, and estimate the cost of the whole run from them."""
    learner, dataset = rehearsal.learner, rehearsal.dataset
    settings, train = learner.settings, learner.settings.train
    meter = EnergyMeter(str(learner.device))
    rows: list[tuple[float, float]] = []
    began = time.perf_counter()
    for row in rehearsal.take(STEPS):
        if not rows:
            meter.read()
        rows.append(row)
        if len(rows) >= LEAST and time.perf_counter() - began > PATIENCE:
            break
    joules = meter.read()
    steady = rows[1:]
    mean, low, high = _bound_mean([seconds for seconds, _ in steady])
    evaluation = _time_evaluation(learner, dataset)
    # Before other micro-batches are tried, which may take more.
    memory = devices.peak_memory_gib(str(learner.device))
    # Before the first step, every so many steps, and at the end.
    evaluations = math.ceil(train.steps / train.monitor_every) + 1
    hours = [(train.steps * seconds + evaluations * evaluation) / 3600 for seconds in (mean, low, high)]
    waiting = sum(waited for _, waited in steady) / sum(seconds for seconds, _ in steady)
    reading = _time_reading(dataset)
    checkpoint, disk = _count_disk(learner, evaluations)
    return Plan(
        steps=train.steps,
        views=train.batch,
        scans=len(dataset.usable),
        stores=tuple(describe_shares(dataset.store, dataset.parts, train.steps * train.batch // 2)),
        device=str(learner.device),
        measured_steps=len(steady),
        seconds=(mean, low, high),
        hours=(hours[0], hours[1], hours[2]),
        waiting=waiting,
        loaders=rehearsal.workers,
        reading=reading,
        evaluation_seconds=evaluation,
        memory_gib=memory,
        disk_bytes=disk,
        checkpoint_bytes=checkpoint,
        energy_kwh={name: value / len(steady) * train.steps / 3.6e6 for name, value in joules.items()},
        micro_batches=dict(_compare_micro_batches(rehearsal, min(seconds for seconds, _ in steady[-TRIED_STEPS:]))),
        slow=(
            *list_slow_reading(waiting, train.batch / mean, reading, rehearsal.workers),
            *_list_slow(settings, hours[0], evaluations * evaluation / 3600, learner),
        ),
    )


def _bound_mean(seconds: Sequence[float]) -> tuple[float, float, float]:
    """The mean of two or more values, and its 95 % interval (Student's t)."""
    mean = statistics.fmean(seconds)
    half = float(student_t.ppf(0.975, len(seconds) - 1)) * statistics.stdev(seconds) / math.sqrt(len(seconds))
    return mean, max(0.0, mean - half), mean + half


def _time_evaluation(learner: Learner, dataset: ViewDataset) -> float:
    validation = Validation(learner.settings, dataset, learner.method, learner.device)
    began = time.perf_counter()
    with learner.autocast():
        validation.evaluate(learner.student, learner.teacher, learner.targets, learner.settings.teacher.temperature_start)
    return time.perf_counter() - began


def _compare_micro_batches(rehearsal: Rehearsal, seconds: float) -> Iterator[tuple[int, float | None]]:
    """Views per second by micro-batch: the chosen one, whose steps take `seconds`, then half and twice its size."""
    learner = rehearsal.learner
    settings, batch = learner.settings, learner.settings.train.batch
    chosen = int(settings.train.micro_batch)
    yield chosen, batch / seconds
    for size in sorted({max(2, chosen // 4 * 2), min(batch, 2 * chosen)} - {chosen}):
        # On the CPU there is no error to catch: the system would end the process.
        estimate = estimate_memory(
            settings,
            size,
            device=str(learner.device),
            precision=learner.precision,
            process=devices.held_memory(),
            free=devices.free_memory(str(learner.device)),
        )
        if size > chosen and not estimate.fits:
            yield size, None
            continue
        train = settings.train.model_copy(update={"micro_batch": size})
        learner.settings = settings.model_copy(update={"train": train})
        try:
            yield size, batch / min(seconds for seconds, _ in rehearsal.take(TRIED_STEPS))
        except torch.OutOfMemoryError:
            yield size, None
        finally:
            learner.settings = settings


def _count_disk(learner: Learner, evaluations: int) -> tuple[int, int]:
    """Bytes of a checkpoint, and of everything that a run writes except its report."""
    train, side = learner.settings.train, learner.settings.view.side
    weights = sum(p.numel() for p in learner.student.parameters())
    teacher = sum(p.numel() for p in learner.teacher.parameters()) if learner.teacher is not None else 0
    # Weights, both moments of AdamW, the teacher: float32.
    checkpoint = 4 * (3 * weights + teacher)
    encoder = 4 * sum(
        p.numel() for name, p in learner.student.named_parameters() if name.startswith(("encoder.", "semantic_attention."))
    )
    # A gallery keeps each view and its reconstruction.
    galleries = evaluations * 2 * _GALLERY_VIEWS * 4 * side**3
    encoders = encoder * (2 if learner.teacher is not None else 1)
    # The oldest checkpoint is deleted once the next one is complete.
    checkpoints = min(math.ceil(train.steps / train.checkpoint_every), train.keep_checkpoints + 1)
    return checkpoint, checkpoint * checkpoints + encoders + galleries + train.steps * _ROW_BYTES


def _time_reading(dataset: ViewDataset) -> float:
    """Views per second that this process reads, of the first steps of a run."""
    began, step = time.perf_counter(), 0
    while not step or time.perf_counter() - began < READING_SECONDS:
        dataset[step % len(dataset)]
        step += 1
    return step * 2 * len(dataset.own) / (time.perf_counter() - began)


def list_slow_reading(waiting: float, speed: float, reading: float, loaders: int) -> Iterator[str]:
    """A sentence with what to try if steps wait for data.

    speed: Views per second of whole steps. reading: Views per second of one loader process. loaders: How many there are.
    """
    if waiting <= SLOW_SHARE:
        return
    need = speed / max(1 - waiting, 0.01)
    wanted = math.ceil(SPARE * need / reading)
    rates = f"without it, steps would take {need:.3g} views/s, and one process reads {reading:.3g}"
    do = f"Set train.workers={wanted}" if wanted > loaders else "Put the store on a faster disk, or request more cores"
    yield f"reading: {waiting:.0%} of the time is spent waiting for data ({rates}). {do}."


def _list_slow(settings: Settings, hours: float, evaluating: float, learner: Learner) -> Iterator[str]:
    if evaluating > SLOW_SHARE * hours:
        yield f"evaluations: {evaluating / hours:.0%} of the time. Increase train.monitor_every, or lower train.monitor_views."
    if learner.device.type == "cpu" and hours > LONG_HOURS:
        yield f"the CPU: {hours / 24:.0f} days. Use a machine with a CUDA device, a smaller --size, or fewer steps."
    if learner.device.type == "cuda" and learner.precision == "fp32":
        yield "float32: set train.precision=bf16 if the device supports it."
    if settings.train.checkpoint_every < 10:
        yield f"checkpoints: one every {settings.train.checkpoint_every} steps. Increase train.checkpoint_every."
