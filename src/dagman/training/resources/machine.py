"""What a run computes on: device, precision, kernels, compilation, threads, allocator, and the processes that read for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dagman import devices
from dagman.settings import Settings

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
    workers: int

    def prepare(self) -> tuple[list[str], int]:
        """Set threads and the allocator of this process; lines on all choices, and the threads."""
        threads = devices.choose_threads()
        torch.set_num_threads(threads.value)
        allocator = devices.tune_allocator(device=self.device.value)
        choices: list[devices.Choice[str] | devices.Choice[int]]
        choices = [self.device, self.precision, self.kernels, self.compile, self.read_after, threads, allocator]
        return devices.describe_choices(choices), threads.value

    def list_fast_paths(self) -> dict[str, Any]:
        """The fast paths chosen, as keywords of a `Learner`."""
        return {"kernels": self.kernels.value, "compiled": self.compile.value, "read_after": self.read_after.value}


def choose_machine(settings: Settings) -> Machine:
    """The choices that the settings allow. Raises SettingsError for what is not there."""
    train = settings.train
    device = devices.choose_device(train.device)
    kernels = devices.choose_kernels(train.kernels, device.value)
    return Machine(
        device=device,
        precision=devices.choose_precision(train.precision, device.value),
        kernels=kernels,
        compile=devices.choose_compile(train.compile, device.value, kernels.value),
        read_after=devices.choose_read_after(train.read_after, device.value),
        workers=(0 if device.value == "cpu" else READERS) if train.workers == "auto" else int(train.workers),
    )
