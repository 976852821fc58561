"""What a run computes on: device, precision, kernels, compilation, threads, allocator, and the processes that read for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dagman import devices
from dagman.settings import Settings
from dagman.training.assembly import choose_skipping

READERS = 4
"""Processes that read views for a CUDA device where none are asked for. [ours]"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The choices for a process, each with its reason; `workers` are the processes that read views."""

    device: devices.Choice[str]
    precision: devices.Choice[str]
    kernels: devices.Choice[str]
    compile: devices.Choice[str]
    read_after: devices.Choice[int]
    skipping: devices.Choice[str]
    workers: int

    def prepare(self) -> tuple[list[str], int]:
        """Set threads and the allocator of this process; lines on all choices, and the threads."""
        threads = devices.choose_threads()
        torch.set_num_threads(threads.value)
        allocator = devices.tune_allocator(device=self.device.value)
        choices: list[devices.Choice[str] | devices.Choice[int]]
        choices = [self.device, self.precision, self.kernels, self.compile, self.read_after, self.skipping, threads, allocator]
        return devices.describe_choices(choices), threads.value

    def list_choices(self) -> dict[str, Any]:
        """What else than precision and threads rounds in a way of its own, by the names of the choices."""
        return {choice.subject: choice.value for choice in (self.kernels, self.compile, self.read_after, self.skipping)}

    def list_fast_paths(self) -> dict[str, Any]:
        """The fast paths chosen, as keywords of a `Learner`."""
        return {
            "kernels": self.kernels.value,
            "compiled": self.compile.value,
            "read_after": self.read_after.value,
            "skip_hidden": self.skipping.value == "skipped",
        }


def choose_machine(settings: Settings) -> Machine:
    """The choices that the settings allow. Raises SettingsError for what is not there."""
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
        workers=(0 if device.value == "cpu" else READERS) if train.workers == "auto" else int(train.workers),
    )
