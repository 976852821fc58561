"""The resources of a run: device, precision, kernels, compilation, threads, allocator, and loader processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from dagman import devices
from dagman.settings import Settings
from dagman.training.assembly import choose_skipping

LOADERS = 4
"""Processes that read views for a CUDA device, if there are cores for them. Two keep up with 200 views of 96^3 per second, three
times what an H100 was measured to take, from the page cache (docs/benchmarks.md); twice as many, as a disk is slower. [ours]"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The choices for a process, each with its reason; `loaders`: number of loader processes."""

    device: devices.Choice[str]
    precision: devices.Choice[str]
    kernels: devices.Choice[str]
    compile: devices.Choice[str]
    read_after: devices.Choice[int]
    skipping: devices.Choice[str]
    loaders: devices.Choice[int]

    def prepare(self) -> tuple[list[str], int]:
        """Set threads and the allocator of this process; returns lines on all choices, and the number of threads."""
        threads = devices.choose_threads()
        torch.set_num_threads(threads.value)
        allocator = devices.tune_allocator(device=self.device.value)
        choices: list[devices.Choice[str] | devices.Choice[int]]
        choices = [self.device, self.precision, self.kernels, self.compile, self.read_after, self.skipping, threads, allocator]
        choices.append(self.loaders)
        return devices.describe_choices(choices), threads.value

    def list_choices(self) -> dict[str, Any]:
        """The other choices that affect rounding, besides precision and threads, by name."""
        return {choice.subject: choice.value for choice in (self.kernels, self.compile, self.read_after, self.skipping)}

    def list_fast_paths(self) -> dict[str, Any]:
        """The chosen fast paths, as keyword arguments of a `Learner`."""
        return {
            "kernels": self.kernels.value,
            "compiled": self.compile.value,
            "read_after": self.read_after.value,
            "skip_hidden": self.skipping.value == "skipped",
        }


def choose_machine(settings: Settings) -> Machine:
    """The choices that the settings allow. Raises SettingsError if a requested resource is not available."""
    train = settings.train
    device = devices.choose_device(train.device)
    kernels = devices.choose_kernels(train.kernels, device.value)
    compiled = devices.choose_compile(train.compile, device.value)
    return Machine(
        device=device,
        precision=devices.choose_precision(train.precision, device.value),
        kernels=kernels,
        compile=compiled,
        read_after=devices.choose_read_after(train.read_after, device.value),
        skipping=choose_skipping(settings, device.value, compiled.value),
        loaders=choose_loaders(train.workers, device.value),
    )


def choose_loaders(asked: int | Literal["auto"], device: str) -> devices.Choice[int]:
    """How many processes read views: as many as `LOADERS`, if this process' share of the cores has one for each besides its own."""
    subject = "loaders"
    if asked != "auto":
        return devices.Choice(subject, asked, "requested")
    if device == "cpu":
        return devices.Choice(subject, 0, "a step on the CPU takes far longer than reading its views")
    cores, which = devices.share_cores()
    count = max(1, min(LOADERS, cores - 1))
    reason = f"{cores} {which}"
    if count < 2:
        reason += ": too few, so that steps may wait for data"
    return devices.Choice(subject, count, reason)
