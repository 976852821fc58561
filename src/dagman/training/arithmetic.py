"""The arithmetic of a run, printed before its first step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from dagman.method.networks import Network
from dagman.records.counts import count_noun
from dagman.settings import Settings
from dagman.store.manifest import Store
from dagman.training.assembly import count_masked, list_untrained


def describe_run(settings: Settings, student: Network, store: Store, usable: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """Lines on scans, views, steps, masking, rates and size."""
    train, view = settings.train, settings.view
    units, counts = count_masked(settings)
    pairs = train.steps * train.batch // 2
    parts = train.batch // int(train.micro_batch)
    patients = len({row.patient for row in store.rows if row.id in set(usable)})
    size = sum(p.numel() for p in student.parameters())
    encoder = sum(p.numel() for name, p in student.named_parameters() if name.startswith(("encoder.", "semantic_attention.")))
    dropped = f"{settings.teacher.noise:.0%} of the teacher's units dropped" if settings.needs_teacher else "no teacher"
    least = round(view.side * (1 - view.padding))
    lines = [
        f"scans: {len(usable)} of {count_noun(patients, 'patient')} at {store.preparation.spacing:g} mm",
        f"views: {view.side}^3 voxels ({view.side * store.preparation.spacing:g} mm), {train.batch} a step"
        + (f" = {train.micro_batch} x {parts} accumulated" if parts > 1 else "")
        + f"; {train.steps} steps = {pairs} pairs = {pairs / len(usable):.1f} a scan",
        f"masking: {settings.masking.kind}, {counts.hidden} of {units} units hidden; {dropped}",
        f"rates: lr {float(settings.optim.lr):.3g} to {settings.optim.min_lr:g}, "
        + f"{round(settings.optim.warmup * train.steps)} warm-up steps"
        + (f"; EMA {settings.teacher.momentum} to {settings.teacher.momentum_end:g}" if settings.needs_teacher else ""),
        f"size: {encoder / 1e6:.2f} M weights in the encoder, {size / 1e6:.2f} M with heads; "
        + f"checkpoints of about {(16 if settings.needs_teacher else 12) * size / 2**20:.0f} MiB",
    ]
    names = [name for name, _ in student.named_parameters()]
    untrained = {part: reason for part, reason in list_untrained(settings).items() if any(n.startswith(part) for n in names)}
    if settings.model.drop_path and not student.encoder.branches:
        lines.append(f"model.drop_path has no effect: the backbone {settings.model.backbone} has no stochastic depth")
    lines += [f"not trained: {part}*, as {reason}" for part, reason in untrained.items()]
    if left_out:
        named = ", ".join(left_out[:5]) + (" ..." if len(left_out) > 5 else "")
        lines.append(
            f"left out: {count_noun(len(left_out), 'scan')} smaller than {least} voxels along an axis ({named}); see view.side, "
            "view.padding"
        )
    return lines


def describe_pace(seconds: Sequence[float], left: int, memory_gib: float) -> str:
    """A line on how long the `left` steps will take, from the seconds of some; and the memory at the peak so far."""
    pace = statistics.median(seconds)
    rest = pace * left
    wait = f"{rest / 3600:.1f} h" if rest >= 6000 else f"{rest / 60:.0f} min" if rest >= 100 else f"{rest:.0f} s"
    return f"pace: {pace:.2g} s a step, about {wait} for the {left} steps left; {memory_gib:.1f} GiB of memory at the peak so far"
