"""A run fitted to the memory that is free where it starts."""

from __future__ import annotations

from dagman import devices
from dagman.settings import Settings
from dagman.training.parallel.group import Group
from dagman.training.parallel.sharing import size_micro_batch
from dagman.training.resources.memory import MemoryEstimate, estimate_memory, fit_micro_batch


def fit_memory(
    settings: Settings, reasons: list[str], device: str, precision: str, group: Group, *, fixed: bool
) -> tuple[Settings, MemoryEstimate, list[str]]:
    """The settings with a micro-batch that fits, what it will take, and the reasons with that of the micro-batch."""
    held, wanted = devices.held_memory(), int(settings.train.micro_batch)
    if group.size > 1:
        # Ranks of one machine share its memory, and all have to cut a step alike.
        size = size_micro_batch(settings, group.size) * 2
        return settings, estimate_memory(settings, size, device=device, precision=precision, process=held), reasons
    free = devices.free_memory(device)
    settings, estimate = fit_micro_batch(settings, device=device, precision=precision, process=held, free=free, fixed=fixed)
    if settings.train.micro_batch != wanted:
        reasons = [line for line in reasons if not line.startswith("train.micro_batch")]
        reasons.append(f"train.micro_batch = {settings.train.micro_batch}, not {wanted}: what fits in the memory that is free")
    return settings, estimate, reasons
