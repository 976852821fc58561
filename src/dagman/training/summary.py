"""Summarises a run in numbers, printed before its first step, with warnings about the settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dagman.devices import peak_memory_gib
from dagman.method.networks import Network
from dagman.records.counts import count_noun
from dagman.settings import Settings
from dagman.settings.momentum import LARGEST_SHARE
from dagman.training.assembly import count_masked, list_untrained, measure_teacher
from dagman.training.parallel.group import Group
from dagman.training.views import ViewDataset, find_inside

PACED_STEPS = 5
"""Number of steps after which a run estimates its remaining time."""
PLACES_COUNTED = 32
"""Number of steps whose crops are drawn to estimate the share of padding."""


def describe_run(settings: Settings, student: Network, dataset: ViewDataset, excluded: Sequence[str]) -> list[str]:
    """Describe scans, views, steps, masking, rates and size, one line each."""
    store, usable = dataset.store, dataset.usable
    train, view = settings.train, settings.view
    units, counts = count_masked(settings)
    pairs = train.steps * train.batch // 2
    parts = math.ceil(train.batch / int(train.micro_batch))
    held = set(usable)
    patients = len({row.patient for row in store.rows if row.id in held})
    assumed = sum(row.patient_from == "assumed" for row in store.rows if row.id in held)
    size = sum(p.numel() for p in student.parameters())
    encoder = sum(p.numel() for name, p in student.named_parameters() if name.startswith(("encoder.", "semantic_attention.")))
    dropped = f"{settings.teacher.noise:.0%} of the teacher's units dropped" if settings.needs_teacher else "no teacher"
    lines = [
        f"scans: {len(usable)} of {count_noun(patients, 'patient')} at {store.preparation.spacing:g} mm"
        + (
            f"; {assumed} of them {'names' if assumed == 1 else 'name'} no patient, and each was treated as a separate patient"
            if assumed
            else ""
        ),
        f"views: {view.side}^3 voxels ({view.side * store.preparation.spacing:g} mm), {train.batch} per step"
        + (f" in {parts} parts of {train.micro_batch} at most" if parts > 1 else "")
        + f"; {train.steps} steps = {pairs} pairs = {pairs / len(usable):.1f} per scan",
        f"masking: {settings.masking.kind}, {counts.hidden} of {units} units masked; {dropped}",
        f"padding: {_measure_padding(dataset):.1%} of the views' voxels lie outside their scans, and are neither masked nor "
        f"reconstructed",
        f"rates: lr {float(settings.optim.lr):.3g} to {settings.optim.min_lr:g}, "
        + f"{count_noun(round(settings.optim.warmup * train.steps), 'warm-up step')}"
        + (f"; EMA {settings.teacher.momentum} to {settings.teacher.momentum_end}" if settings.needs_teacher else ""),
        *([_describe_memory(settings)] if settings.needs_teacher else []),
        f"size: {encoder / 1e6:.2f} M weights in the encoder, {size / 1e6:.2f} M with heads; "
        + f"checkpoints of about {(16 if settings.needs_teacher else 12) * size / 2**20:.0f} MiB",
    ]
    names = [name for name, _ in student.named_parameters()]
    untrained = {part: reason for part, reason in list_untrained(settings).items() if any(n.startswith(part) for n in names)}
    if settings.model.drop_path and not student.encoder.branches and not settings.model.fixed_sizes:
        lines.append(f"model.drop_path has no effect: the backbone {settings.model.backbone} has no stochastic depth")
    lines += [f"not trained: {part}*, as {reason}" for part, reason in untrained.items()]
    if excluded:
        rows = {row.id: row for row in store.rows}
        shown = (f"{scan} of {rows[scan].patient}, {' x '.join(map(str, rows[scan].shape))}" for scan in excluded[:5])
        named = "; ".join(shown) + ("; ..." if len(excluded) > 5 else "")
        lines.append(
            f"excluded: {count_noun(len(excluded), 'scan')} smaller than {view.least} voxels along an axis ({named}); see "
            "view.side, view.padding"
        )
    return lines


def _measure_padding(dataset: ViewDataset) -> float:
    """Compute the fraction of voxels of the first steps' views that lie outside their scans."""
    side = dataset.view.side
    shares = []
    for step in range(min(PLACES_COUNTED, dataset.steps)):
        for crop in (crop for pair in dataset.places(step) for crop in pair):
            first, last = find_inside(crop, dataset.shapes[crop.scan], side)
            shares.append(1 - math.prod(b - a for a, b in zip(first, last, strict=True)) / side**3)
    return statistics.fmean(shares)


def list_run_warnings(settings: Settings) -> dict[str, str]:
    """List warnings, by key, that follow from the settings, with the numbers of this run."""
    warnings = {}
    memory = measure_teacher(settings, settings.train.steps)
    if settings.needs_teacher and memory.first_weights > LARGEST_SHARE:
        warnings["settings: memory"] = (
            f"{memory.first_weights:.0%} of the teacher will still be its initial random weights after {settings.train.steps} "
            f"steps. "
            "Set teacher.momentum and teacher.momentum_end to auto, or train longer."
        )
    units, counts = count_masked(settings)
    masking = settings.masking
    if masking.kind == "attention-high" and masking.hints > 0 and counts.hints == 0:
        warnings["settings: hints"] = (
            f"there are no hints: masking.hints = {masking.hints:g} of the {units} units of a view is less than one. "
            f"Increase view.side, or set masking.hints={1 / units:.3g} or more."
        )
    if settings.optim.warmup > 0 and round(settings.optim.warmup * settings.train.steps) == 0:
        warnings["settings: warm-up"] = (
            f"the learning rate starts at its peak: optim.warmup = {settings.optim.warmup:g} of {settings.train.steps} steps "
            "is less than half a step."
        )
    return warnings


def _describe_memory(settings: Settings) -> str:
    steps = settings.train.steps
    memory = measure_teacher(settings, steps)
    return (
        f"teacher: {memory.first_weights:.2g} of its initial weights left at the end; "
        f"{count_noun(round(memory.age), 'step')} old on average, "
        f"{memory.age / steps:.0%} of the run"
    )


def describe_pace(seconds: Sequence[float], left: int, timing: Mapping[str, Any]) -> str:
    """Describe in one line how long the `left` steps will take, with memory and communication from a row of `time_step`."""
    pace = statistics.median(seconds)
    rest = pace * left
    wait = f"{rest / 3600:.1f} h" if rest >= 6000 else f"{rest / 60:.0f} min" if rest >= 100 else f"{rest:.0f} s"
    steps = count_noun(left, "step")
    line = f"pace: {pace:.2g} s per step, about {wait} for the {steps} left; "
    line += f"{timing['memory_gib']:.1f} GiB of memory at the peak so far"
    exchanged = timing.get("communicated_mib")
    return line if exchanged is None else f"{line}; {exchanged:.1f} MiB sent by each rank per step"


class Pace:
    """Estimates the remaining time once, after some steps; the first step, which includes warm-up, is not counted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def add(self, seconds: float, left: int, timing: Mapping[str, Any]) -> str | None:
        """Add a step with its row of `time_step`; returns the line when it is due, else None."""
        if len(self.seconds) == PACED_STEPS:
            return None
        self.seconds.append(seconds)
        return describe_pace(self.seconds[1:], left, timing) if len(self.seconds) == PACED_STEPS else None


def time_step(settings: Settings, step: int, seconds: float, waited: float, device: str, group: Group) -> dict[str, Any]:
    """Make a row of `timing.jsonl`: speed of the step, share of time spent waiting for data, memory, MiB sent to other ranks."""
    views = settings.train.batch
    return {
        "step": step,
        "seconds": round(seconds, 4),
        "views_per_s": round(views / seconds, 3),
        "voxels_per_s": round(views * settings.view.side**3 / seconds),
        "waiting_share": round(waited / seconds, 4),
        "memory_gib": round(peak_memory_gib(device), 3),
        **({"communicated_mib": round(group.communicated / 2**20, 3)} if group.size > 1 else {}),
    }
