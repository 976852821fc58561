"""What a run computes on: device, precision, kernels, threads, allocator, and the processes that read for it."""

from __future__ import annotations

from dataclasses import dataclass

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
    workers: int

    def prepare(self) -> tuple[list[str], int]:
        """Set threads and the allocator of this process; lines on all choices, and the threads."""
        threads = devices.choose_threads()
        torch.set_num_threads(threads.value)
        allocator = devices.tune_allocator(device=self.device.value)
        return devices.describe_choices([self.device, self.precision, self.kernels, threads, allocator]), threads.value


def choose_machine(settings: Settings) -> Machine:
    """The choices that the settings allow. Raises SettingsError for what is not there."""
    train = settings.train
    device = devices.choose_device(train.device)
    return Machine(
        device=device,
        precision=devices.choose_precision(train.precision, device.value),
        kernels=devices.choose_kernels(train.kernels, device.value),
        workers=(0 if device.value == "cpu" else READERS) if train.workers == "auto" else int(train.workers),
    )
