"""`dagman pretrain --plan`: a few steps in memory, and what the whole run will cost by them. Nothing is written."""

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
"""Steps that are measured, the first of them to warm up; the fewest; and the seconds after which no further one begins."""
OTHER_STEPS = 2
"""Steps with each other micro-batch."""
SLOW_SHARE, LONG_HOURS = 0.05, 48.0
READING_SECONDS = 1.0
"""How long the reading of views is timed."""
SPARE = 2.0
"""Views that loader processes should be able to read, for each that the steps take."""
_ROW_BYTES, _GALLERY_VIEWS = 900, 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will cost on this machine.

    Attributes:
        steps, views: Steps of the run, and views of a step.
        scans, device: How many scans it learns from, and what it runs on.
        stores: A line on the share of each store; empty where there is one.
        seconds: Of a step: mean, and its 95 % interval.
        hours: Of the whole run with its evaluations: from the mean, and from the ends of the interval.
        waiting: Share of a step's time spent waiting for data.
        loaders, reading: Processes that read views (0: the one that trains), and how many views per second one of them reads.
        evaluation_seconds: Of one evaluation on the validation views.
        memory_gib: Peak on the device (on the CPU: of the process).
        disk_bytes: Checkpoints that are kept, encoders, curves and galleries.
        checkpoint_bytes: Of one checkpoint.
        energy_kwh: Of the whole run by source, gpu or cpu; empty where the hardware does not count it.
        micro_batches: Views a second by micro-batch, the chosen one first; None where it does not fit.
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
        """The quickest micro-batch; the chosen one unless another is clearly quicker."""
        chosen = next(iter(self.micro_batches))
        speeds = {size: speed for size, speed in self.micro_batches.items() if speed is not None}
        best = max(speeds, key=lambda size: speeds[size])
        return best if speeds[best] > 1.05 * speeds.get(chosen, 0.0) else chosen

    def to_json(self) -> dict[str, Any]:
        """Plain values; an interval that a single step cannot give is null."""
        ends = {name: [None if math.isnan(one) else one for one in getattr(self, name)] for name in ("seconds", "hours")}
        return {**asdict(self), **ends, "best_micro_batch": self.best_micro_batch}


@dataclass(kw_only=True)
class Rehearsal:
    """What a run is made of, in memory alone: it takes steps and writes nothing."""

    learner: Learner
    dataset: ViewDataset
    workers: int

    def take(self, steps: int) -> Iterator[tuple[float, float]]:
        """Take so many steps; seconds of each, and how many of them were spent waiting for views."""
        learner = self.learner
        batches = load_steps(self.dataset, 0, self.workers, pinned=learner.device.type == "cuda")
        unread: Outcome | None = None
        for step in range(steps):
            began = time.perf_counter()
            pairs = learner.draw_pairs(next(batches), step, self.dataset.own)
            waited = time.perf_counter() - began
            outcome = learner.advance(pairs, step)
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
    """What `pretrain` with these arguments would train, with a micro-batch that fits: for `plan_pretraining`.

    Raises:
        RunError: The source is not a store, this is one of several processes, or nothing fits in the memory that is free.
        SettingsError, StoreError, EncoderError: As `pretrain`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError(
            "--plan needs a single process", do="Run without torchrun, and divide the step time by the number of devices"
        )
    parts = [split_weight(path) for path in ([source] if isinstance(source, str | Path) else source)]
    for path, _ in parts:
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
    dataset = ViewDataset(store, usable, settings.view, train.batch, settings.seed, train.steps, parts=shares)
    learner = Learner(settings, device=device, precision=precision, **machine.list_fast_paths())
    if start is not None:
        adopt_weights(learner.student, learner.teacher, learner.targets, start)
    return Rehearsal(learner=learner, dataset=dataset, workers=machine.loaders.value)


def plan_pretraining(rehearsal: Rehearsal) -> Plan:
    """Take a few steps in memory, and tell from them what the whole run will cost."""
    learner, dataset = rehearsal.learner, rehearsal.dataset
    settings, train = learner.settings, learner.settings.train
    meter = EnergyMeter(str(learner.device))
    rows: list[tuple[float, float]] = []
    began = time.perf_counter()
    steps = rehearsal.take(min(STEPS, max(2, train.steps)))
    for row in steps:
        if not rows:
            meter.read()
        rows.append(row)
        if len(rows) >= LEAST and time.perf_counter() - began > PATIENCE:
            break
    joules = meter.read()
    steady = rows[1:] or rows
    mean, low, high = _bound_mean([seconds for seconds, _ in steady])
    memory = devices.peak_memory_gib(str(learner.device))
    evaluation = _time_evaluation(learner, dataset)
    evaluations = train.steps // train.monitor_every + 1
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
        micro_batches=dict(_compare_micro_batches(rehearsal, train.batch / mean)),
        slow=(
            *list_slow_reading(waiting, train.batch / mean, reading, rehearsal.workers),
            *_list_slow(settings, hours[0], evaluations * evaluation / 3600, learner),
        ),
    )


def _bound_mean(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval (Student's t); the mean alone says nothing of its error where there is one step."""
    mean = statistics.fmean(seconds)
    if len(seconds) < 2:
        return mean, math.nan, math.nan
    half = float(student_t.ppf(0.975, len(seconds) - 1)) * statistics.stdev(seconds) / math.sqrt(len(seconds))
    return mean, max(0.0, mean - half), mean + half


def _time_evaluation(learner: Learner, dataset: ViewDataset) -> float:
    validation = Validation(learner.settings, dataset, learner.method, learner.device)
    began = time.perf_counter()
    with learner.autocast():
        validation.evaluate(learner.student, learner.teacher, learner.targets, learner.settings.teacher.temperature_start)
    return time.perf_counter() - began


def _compare_micro_batches(rehearsal: Rehearsal, chosen_speed: float) -> Iterator[tuple[int, float | None]]:
    """Views a second by the size of the micro-batch: as chosen, half of it, twice as many, as far as the step has."""
    learner = rehearsal.learner
    settings, batch = learner.settings, learner.settings.train.batch
    chosen = int(settings.train.micro_batch)
    yield chosen, chosen_speed
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
            seconds = [seconds for seconds, _ in rehearsal.take(OTHER_STEPS)]
            yield size, batch / min(seconds)
        except torch.OutOfMemoryError:
            yield size, None
    learner.settings = settings


def _count_disk(learner: Learner, evaluations: int) -> tuple[int, int]:
    """Bytes of a checkpoint, and of all that a run leaves, before its page."""
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
    return checkpoint, checkpoint * (train.keep_checkpoints + 1) + encoders + galleries + train.steps * _ROW_BYTES


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
    do = f"Set train.workers={wanted}" if wanted > loaders else "Put the store on a faster disk, or ask for more cores"
    yield f"reading: {waiting:.0%} of the time is spent waiting for data ({rates}). {do}."


def _list_slow(settings: Settings, hours: float, evaluating: float, learner: Learner) -> Iterator[str]:
    if evaluating > SLOW_SHARE * hours:
        yield f"evaluations: {evaluating / hours:.0%} of the time. Increase train.monitor_every, or lower train.monitor_views."
    if learner.device.type == "cpu" and hours > LONG_HOURS:
        yield f"the processor: {hours / 24:.0f} days. Use a machine with a CUDA device, a smaller --size, or fewer steps."
    if learner.device.type == "cuda" and learner.precision == "fp32":
        yield "float32: set train.precision=bf16 where the device has it."
    if settings.train.checkpoint_every < 10:
        yield f"checkpoints: one every {settings.train.checkpoint_every} steps. Increase train.checkpoint_every."
