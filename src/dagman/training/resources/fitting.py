"""Fits a run to the free memory of the machine that it starts on."""

from __future__ import annotations

import os
import platform

import torch

from dagman import devices
from dagman.settings import Settings
from dagman.training.parallel.group import Group
from dagman.training.parallel.sharing import size_micro_batch
from dagman.training.resources.memory import MemoryEstimate, estimate_memory, fit_micro_batch


def fit_memory(
    settings: Settings, reasons: list[str], device: str, precision: str, group: Group, *, fixed: bool
) -> tuple[Settings, MemoryEstimate, list[str]]:
    """The settings with a micro-batch that fits, its estimated memory, and the reasons, including that of the micro-batch.

    All ranks use the smallest micro-batch that fits on each of them, because they must divide a step in the same way.

    Raises:
        RunError: Nothing fits.
    """
    # Counting shapes imports a part of torch that takes 190 MiB and stays loaded, so it comes before memory is measured.
    estimate_memory(settings, 2, device=device, precision=precision)
    held, free = devices.held_memory(), _share_memory(devices.free_memory(device), device, group)
    with group.together():
        estimate = fit_micro_batch(
            settings, device=device, precision=precision, process=held, free=free, fixed=fixed, ranks=group.size
        )
    first, wanted = 2 * size_micro_batch(settings, group.size), int(settings.train.micro_batch)
    size = min(group.share(estimate.micro_batch))
    if size == first:
        return settings, estimate, reasons
    if size != estimate.micro_batch:
        estimate = estimate_memory(settings, size, device=device, precision=precision, process=held, free=free, ranks=group.size)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"micro_batch": size})})
    reasons = [line for line in reasons if not line.startswith("train.micro_batch")]
    reasons.append(f"train.micro_batch = {size}, not {wanted}: the largest that fits in free memory")
    return settings, estimate, reasons


def _share_memory(free: int | None, device: str, group: Group) -> int | None:
    """Free memory of this process: on the CPU, an equal part of what all ranks of its host share."""
    hosts = group.share(platform.node())
    if free is None or torch.device(device).type == "cuda":
        return free
    siblings = int(os.environ.get("LOCAL_WORLD_SIZE", hosts.count(platform.node()))) if group.size > 1 else 1
    return free // max(1, siblings)
