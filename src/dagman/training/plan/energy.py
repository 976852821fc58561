"""Energy measured by the hardware: NVML's counter of a CUDA device, and RAPL's counters of the processors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules between two calls of `read` by source, `gpu` and `cpu`; a source that cannot be read is omitted."""

    def __init__(self, device: str, rapl: Path = RAPL) -> None:
        self.rapl = rapl
        self.count_gpu = _open_nvml(device)
        self.last = self._count()

    def read(self) -> dict[str, float]:
        """Joules since the last call, or since the meter was created."""
        now = self._count()
        spent = {}
        for name, (joules, largest) in now.items():
            if name in self.last:
                # RAPL counters restart at 0 after their largest value.
                spent[name] = (joules - self.last[name][0]) % largest if largest else joules - self.last[name][0]
        self.last = now
        return _add_packages(spent)

    def _count(self) -> dict[str, tuple[float, float]]:
        """Joules counted so far, and the value after which the counter restarts (0: never)."""
        counts = {}
        # Only packages: they include the cores and memory below them.
        for package in sorted(self.rapl.glob("intel-rapl:[0-9]")):
            try:
                values = [int((package / file).read_text()) / 1e6 for file in ("energy_uj", "max_energy_range_uj")]
            except (OSError, ValueError):
                continue
            counts[package.name] = (values[0], values[1])
        if self.count_gpu is not None and (joules := self.count_gpu()) is not None:
            counts["gpu"] = (joules, 0.0)
        return counts


def _add_packages(spent: dict[str, float]) -> dict[str, float]:
    packages = [joules for name, joules in spent.items() if name != "gpu"]
    gpu = {"gpu": spent["gpu"]} if "gpu" in spent else {}
    return gpu | ({"cpu": sum(packages)} if packages else {})


def _open_nvml(device: str) -> Callable[[], float | None] | None:
    """A function that returns the joules used by a CUDA device since its driver was loaded; None if they cannot be read."""
    if torch.device(device).type != "cuda":
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    # By UUID: CUDA_VISIBLE_DEVICES renumbers devices for torch, but not for NVML.
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
        return None

    def count() -> float | None:
        millijoules = ctypes.c_ulonglong()
        failed = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return None if failed else millijoules.value / 1000

    return count
