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
from dagman.settings import Settings, load_settings, resolve_settings
from dagman.store.manifest import Store
from dagman.training.assembly import check_backbone
from dagman.training.monitoring.validation import Validation
from dagman.training.parallel.group import Group
from dagman.training.plan.energy import EnergyMeter
from dagman.training.resources.fitting import fit_memory
from dagman.training.resources.memory import estimate_memory
from dagman.training.start.adoption import adopt_settings, adopt_weights, choose_presets
from dagman.training.start.settling import settle_modality, settle_spacing
from dagman.training.start.source import resolve_source
from dagman.training.trainer import Trainer
from dagman.training.views import ViewDataset, find_usable, refuse_repetition, select_rows

STEPS, LEAST, PATIENCE = 9, 4, 60.0
"""Steps that are measured, the first of them to warm up; the fewest; and the seconds after which no further one begins."""
OTHER_STEPS = 2
"""Steps with each other micro-batch."""
SLOW_SHARE, LONG_HOURS = 0.05, 48.0
_ROW_BYTES, _GALLERY_VIEWS = 900, 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will cost on this machine.

    Attributes:
        steps, views: Steps of the run, and views of a step.
        scans, device: How many scans it learns from, and what it runs on.
        seconds: Of a step: mean, and its 95 % interval.
        hours: Of the whole run with its evaluations: from the mean, and from the ends of the interval.
        waiting: Share of a step's time spent waiting for data.
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
    device: str
    measured_steps: int
    seconds: tuple[float, float, float]
    hours: tuple[float, float, float]
    waiting: float
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


def prepare_trainer(
    source: str | Path | Sequence[str | Path],
    size: str | None = None,
    method: str | None = None,
    config: str | Path | None = None,
    assignments: Iterable[str] = (),
    continue_from: str | None = None,
) -> Trainer:
    """A trainer on a store as `pretrain` with these arguments has it, that writes nothing: for `plan_pretraining`.

    Raises:
        RunError: The source is not a store, this is one of several processes, or nothing fits in the memory that is free.
        SettingsError, StoreError, EncoderError: As `pretrain`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError("a plan is made by one process", do="Leave torchrun out, and divide the steps' time by the devices")
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    if len(paths) != 1 or not (paths[0] / "store.json").exists():
        raise RunError(
            "a plan is made from a store", where=paths[0], do="Prepare the scans first: dagman prepare SCANS --out STORE"
        )
    start = None if continue_from is None else resolve_source(continue_from)
    if start is not None:
        size, method = choose_presets(start, size, method)
    settings, given = load_settings(size, method, config=config, assignments=assignments)
    settings = settings if start is None else adopt_settings(settings, given, start)
    check_backbone(settings)
    settings, _ = resolve_settings(settings)
    store = Store(paths[0])
    settings = settle_modality(settle_spacing(settings, store, asked="view.spacing" in given), store)
    trainer = _build_trainer(settings, store, fixed="train.micro_batch" in given)
    if start is not None:
        adopt_weights(trainer.student, trainer.teacher, trainer.targets, start)
    return trainer


def _build_trainer(settings: Settings, store: Store, *, fixed: bool) -> Trainer:
    """A trainer in memory alone, with a micro-batch that fits; fixed: it was asked for. Raises RunError where none fits."""
    usable, _ = find_usable({row.id: row.shape for row in select_rows(store.rows, settings.view)}, settings.view)
    refuse_repetition(settings, len(usable))
    device = devices.choose_device(settings.train.device).value
    precision = devices.choose_precision(settings.train.precision, device).value
    kernels = devices.choose_kernels(settings.train.kernels, device).value
    settings, _, _ = fit_memory(settings, [], device, precision, Group(), fixed=fixed)
    torch.set_num_threads(devices.choose_threads().value)
    devices.tune_allocator(device=device)
    workers = (0 if device == "cpu" else 4) if settings.train.workers == "auto" else int(settings.train.workers)
    dataset = ViewDataset(store, usable, settings.view, settings.train.batch, settings.seed, settings.train.steps)
    trainer = Trainer(
        settings,
        dataset,
        Path(os.devnull),
        device=device,
        precision=precision,
        workers=workers,
        state={},
        on_event=lambda name, values: None,
    )
    for network in (trainer.student, trainer.teacher):
        if network is not None:
            network.encoder.use_kernels(kernels)
    return trainer


def plan_pretraining(trainer: Trainer) -> Plan:
    """Take a few steps in memory, and tell from them what the whole run will cost."""
    settings, train = trainer.settings, trainer.settings.train
    meter = EnergyMeter(str(trainer.device))
    rows: list[tuple[float, float]] = []
    began = time.perf_counter()
    steps = trainer.rehearse(min(STEPS, max(2, train.steps)))
    for row in steps:
        if not rows:
            meter.read()
        rows.append(row)
        if len(rows) >= LEAST and time.perf_counter() - began > PATIENCE:
            break
    joules = meter.read()
    steady = rows[1:] or rows
    mean, low, high = _bound_mean([seconds for seconds, _ in steady])
    memory = devices.peak_memory_gib(str(trainer.device))
    evaluation = _time_evaluation(trainer)
    evaluations = train.steps // train.monitor_every + 1
    hours = [(train.steps * seconds + evaluations * evaluation) / 3600 for seconds in (mean, low, high)]
    waiting = sum(waited for _, waited in steady) / sum(seconds for seconds, _ in steady)
    checkpoint, disk = _count_disk(trainer, evaluations)
    return Plan(
        steps=train.steps,
        views=train.batch,
        scans=len(trainer.dataset.usable),
        device=str(trainer.device),
        measured_steps=len(steady),
        seconds=(mean, low, high),
        hours=(hours[0], hours[1], hours[2]),
        waiting=waiting,
        evaluation_seconds=evaluation,
        memory_gib=memory,
        disk_bytes=disk,
        checkpoint_bytes=checkpoint,
        energy_kwh={name: value / len(steady) * train.steps / 3.6e6 for name, value in joules.items()},
        micro_batches=dict(_compare_micro_batches(trainer, train.batch / mean)),
        slow=tuple(_list_slow(settings, hours[0], waiting, evaluations * evaluation / 3600, trainer)),
    )


def _bound_mean(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval (Student's t); the mean alone says nothing of its error where there is one step."""
    mean = statistics.fmean(seconds)
    if len(seconds) < 2:
        return mean, math.nan, math.nan
    half = float(student_t.ppf(0.975, len(seconds) - 1)) * statistics.stdev(seconds) / math.sqrt(len(seconds))
    return mean, max(0.0, mean - half), mean + half


def _time_evaluation(trainer: Trainer) -> float:
    validation = Validation(trainer.settings, trainer.dataset, trainer.method, trainer.device)
    began = time.perf_counter()
    with trainer.autocast():
        validation.evaluate(trainer.student, trainer.teacher, trainer.targets, trainer.settings.teacher.temperature_start)
    return time.perf_counter() - began


def _compare_micro_batches(trainer: Trainer, chosen_speed: float) -> Iterator[tuple[int, float | None]]:
    """Views a second by the size of the micro-batch: as chosen, half of it, twice as many, as far as the step has."""
    settings, batch = trainer.settings, trainer.settings.train.batch
    chosen = int(settings.train.micro_batch)
    yield chosen, chosen_speed
    for size in sorted({max(2, chosen // 4 * 2), min(batch, 2 * chosen)} - {chosen}):
        # On the CPU there is no error to catch: the system would end the process.
        estimate = estimate_memory(
            settings,
            size,
            device=str(trainer.device),
            precision=trainer.precision,
            process=devices.held_memory(),
            free=devices.free_memory(str(trainer.device)),
        )
        if size > chosen and not estimate.fits:
            yield size, None
            continue
        train = settings.train.model_copy(update={"micro_batch": size})
        trainer.settings = settings.model_copy(update={"train": train})
        try:
            seconds = [seconds for seconds, _ in trainer.rehearse(OTHER_STEPS)]
            yield size, batch / min(seconds)
        except torch.OutOfMemoryError:
            yield size, None
    trainer.settings = settings


def _count_disk(trainer: Trainer, evaluations: int) -> tuple[int, int]:
    """Bytes of a checkpoint, and of all that a run leaves, before its page."""
    train, side = trainer.settings.train, trainer.settings.view.side
    weights = sum(p.numel() for p in trainer.student.parameters())
    teacher = sum(p.numel() for p in trainer.teacher.parameters()) if trainer.teacher is not None else 0
    # Weights, both moments of AdamW, the teacher: float32.
    checkpoint = 4 * (3 * weights + teacher)
    encoder = 4 * sum(
        p.numel() for name, p in trainer.student.named_parameters() if name.startswith(("encoder.", "semantic_attention."))
    )
    # A gallery keeps each view and its reconstruction.
    galleries = evaluations * 2 * _GALLERY_VIEWS * 4 * side**3
    encoders = encoder * (2 if trainer.teacher is not None else 1)
    return checkpoint, checkpoint * (train.keep_checkpoints + 1) + encoders + galleries + train.steps * _ROW_BYTES


def _list_slow(settings: Settings, hours: float, waiting: float, evaluating: float, trainer: Trainer) -> Iterator[str]:
    if waiting > SLOW_SHARE:
        yield f"reading: {waiting:.0%} of the time is waiting for data. Raise train.workers, or put the store on a faster disk."
    if evaluating > SLOW_SHARE * hours:
        yield f"evaluations: {evaluating / hours:.0%} of the time. Raise train.monitor_every, or lower train.monitor_views."
    if trainer.device.type == "cpu" and hours > LONG_HOURS:
        yield f"the processor: {hours / 24:.0f} days. Take a machine with a CUDA device, a smaller --size, or fewer steps."
    if trainer.device.type == "cuda" and trainer.precision == "fp32":
        yield "float32: set train.precision=bf16 where the device has it."
    if settings.train.checkpoint_every < 10:
        yield f"checkpoints: one every {settings.train.checkpoint_every} steps. Raise train.checkpoint_every."
