"""Energy as the hardware counts it: NVML's counter of a CUDA device, RAPL's of the processors; None where neither can be read."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules from one call of `read` to the next, by source: `gpu`, `cpu`; a source that cannot be read is left out."""

    def __init__(self, device: str, rapl: Path = RAPL) -> None:
        self.rapl = rapl
        self.count_gpu = _open_nvml(device)
        self.last = self._count()

    def read(self) -> dict[str, float]:
        """Joules since the last call, or since it was made."""
        now = self._count()
        spent = {}
        for name, (joules, largest) in now.items():
            if name in self.last:
                # A counter of RAPL begins again at 0 after its largest value.
                spent[name] = (joules - self.last[name][0]) % largest if largest else joules - self.last[name][0]
        self.last = now
        return _add_packages(spent)

    def _count(self) -> dict[str, tuple[float, float]]:
        """Joules counted so far, and where the counter begins again (0: never)."""
        counts = {}
        # Packages alone: what lies below them (cores, memory) is counted in them.
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
    """A function that gives the joules that a CUDA device has used since its driver was loaded."""
    if torch.device(device).type != "cuda":
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    # By its UUID: CUDA_VISIBLE_DEVICES renumbers devices for torch, and not for NVML.
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
        return None

    def count() -> float | None:
        millijoules = ctypes.c_ulonglong()
        failed = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return None if failed else millijoules.value / 1000

    return count
