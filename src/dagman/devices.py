"""Chooses device, precision, kernels, threads and allocator; each choice comes with its reason, to be printed once.

The functions `choose_*` only return a choice and apply nothing; only `tune_allocator` changes the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dagman.errors import SettingsError

Value = TypeVar("Value", str, int)

# Flags in /proc/cpuinfo of processors that multiply bfloat16 in hardware: x86 (Zen 4, Cooper Lake; Sapphire Rapids), Arm.
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_NEVER_TRIM = -1
_TOP_PAD_BYTES = 64 << 20
_OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


@dataclass(frozen=True)
class Choice(Generic[Value]):
    """A choice: its subject, the chosen value, and the reason."""

    subject: str
    value: Value
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.value} ({self.reason})"


def choose_device(name: str = "auto") -> Choice[str]:
    """Choose the named device; for `auto` the CUDA device of this process if there is one, else the CPU.

    Under torchrun each process uses the CUDA device of its LOCAL_RANK.

    Raises:
        SettingsError: if the name is unknown or the device does not exist.
    """
    kind, _, number = name.partition(":")
    if name == "cpu":
        return Choice("device", "cpu", "requested")
    if name == "auto" and not torch.cuda.is_available():
        return Choice("device", "cpu", "no CUDA device is visible")
    if name != "auto" and not (kind == "cuda" and (number.isdigit() or name == "cuda")):
        raise SettingsError("is not a device", where=f"device {name!r}", do="Use auto, cpu, cuda, or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number or os.environ.get("LOCAL_RANK", "0"))
    if index >= count:
        found = f"{count} are visible" if count else "none is visible"
        raise SettingsError(f"there is no CUDA device {index}: {found}", where=f"device {name!r}", do="Use auto or cpu")
    gib = torch.cuda.get_device_properties(index).total_memory / 2**30
    asked = "" if name == "auto" else "requested; "
    return Choice("device", f"cuda:{index}", f"{asked}{torch.cuda.get_device_name(index)}, {gib:.0f} GiB")


def choose_precision(name: str = "auto", device: str = "cpu") -> Choice[str]:
    """Choose `bf16` or `fp32`; for `auto` bf16 if the device supports it in hardware.

    Raises:
        SettingsError: if the name is unknown.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise SettingsError("is not a precision", where=f"precision {name!r}", do="Use auto, fp32, or bf16")
    if name == "fp32":
        return Choice("precision", "fp32", "requested")
    native, why = _find_bf16(device)
    if name == "bf16":
        return Choice("precision", "bf16", "requested" if native else f"requested, but slower than fp32: {why}")
    return Choice("precision", "bf16" if native else "fp32", why)


def choose_kernels(name: str = "auto", device: str = "cpu") -> Choice[str]:
    """Choose `reference` (operations of torch) or `triton` (the kernels of `dagman.model.kernels`); `auto` is the reference.

    `auto` will change only after a run on a GPU has shown both speed and accuracy of the kernels (docs/decisions/0035).

    Raises:
        SettingsError: if the name is unknown, or if it is `triton` and there is no CUDA device or no package triton.
    """
    if name not in ("auto", "reference", "triton"):
        raise SettingsError("are not kernels", where=f"kernels {name!r}", do="Use auto, reference, or triton")
    if name == "reference":
        return Choice("kernels", "reference", "requested")
    cuda = torch.device(device).type == "cuda"
    if name == "auto":
        why = (
            "the Triton kernels have not been measured on a GPU; train.kernels=triton enables them" if cuda else f"runs on {device}"
        )
        return Choice("kernels", "reference", why)
    if not cuda:
        raise SettingsError("the Triton kernels need a CUDA device", where=f"kernels {name!r}", do="Use auto or reference")
    if importlib.util.find_spec("triton") is None:
        raise SettingsError("the package triton is missing", where=f"kernels {name!r}", do="Install it, or use reference")
    return Choice("kernels", "triton", "requested")


def choose_compile(name: str = "auto", device: str = "cpu") -> Choice[str]:
    """Choose `off`, `on` (torch.compile of the encoders) or `graphs` (with CUDA graphs); `auto` is off until measured on a GPU.

    Raises:
        SettingsError: if the name is unknown.
    """
    if name not in ("auto", "off", "on", "graphs"):
        raise SettingsError("is not known", where=f"compile {name!r}", do="Use auto, off, on, or graphs")
    if name == "off":
        return Choice("compile", "off", "requested")
    if torch.device(device).type != "cuda":
        return Choice("compile", "off", f"runs on {device}, where compiled steps were slower (docs/benchmarks.md)")
    if name == "auto":
        return Choice("compile", "off", "has not been measured on a GPU; train.compile=on enables it")
    return Choice("compile", name, "requested")


def choose_read_after(steps: int | str = "auto", device: str = "cpu") -> Choice[int]:
    """Choose after how many steps losses are read, 0 or 1; `auto` is 0 until 1 has been measured on a GPU.

    Raises:
        SettingsError: if `steps` is none of these.
    """
    if steps not in ("auto", 0, 1):
        raise SettingsError("is not a number of steps", where=f"read_after {steps!r}", do="Use auto, 0, or 1")
    if torch.device(device).type != "cuda":
        return Choice("read after", 0, f"runs on {device}, where nothing waits")
    if steps == "auto":
        return Choice("read after", 0, "1 has not been measured on a GPU; train.read_after=1 enables it")
    return Choice("read after", int(steps), "requested")


def choose_threads() -> Choice[int]:
    """Choose the number of CPU threads: OMP_NUM_THREADS, or the cores of this process, which torchrun divides among ranks."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return Choice("threads", int(asked), "OMP_NUM_THREADS")
    return Choice("threads", *share_cores())


def share_cores() -> tuple[int, str]:
    """Return the number of cores for this process, and where it comes from; under torchrun, its share of the host's cores."""
    cores, why = _count_cores()
    siblings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if siblings > 1:
        return max(1, cores // siblings), f"{why}, shared by {siblings} processes"
    return cores, why


def tune_allocator(mode: Literal["auto", "on", "off"] = "auto", device: str = "cpu") -> Choice[str]:
    """Let glibc keep freed memory for the rest of this process (`tuned`), unless that is impossible or useless (`default`).

    By default, glibc returns each large tensor to the system when it is freed, so that the next one costs page faults again: a
    third to a half of a training step on a virtual machine. Keeping the memory raises the peak by 0.1 to 1.7 GiB.

    Args:
        mode: `auto` tunes only if the computation runs on the CPU, `on` whenever the process uses glibc, `off` never.
        device: The device of the computation.

    Raises:
        SettingsError: if the mode is unknown.
    """
    if mode not in ("auto", "on", "off"):
        raise SettingsError("is not a mode", where=f"allocator {mode!r}", do="Use auto, on, or off")
    if mode == "off":
        return Choice("allocator", "default", "requested")
    if mode == "auto" and device != "cpu":
        return Choice("allocator", "default", f"tensors live on {device}")
    if platform.libc_ver()[0] != "glibc":
        return Choice("allocator", "default", "this system's C library is not glibc")
    preloaded = [name for name in _OTHER_ALLOCATORS if name in os.environ.get("LD_PRELOAD", "")]
    if preloaded:
        return Choice("allocator", "default", f"{preloaded[0]} is preloaded")
    return _keep_freed_memory()


def pin_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Restrict torch's fused attention within a block to its efficient and math backends; no effect on a CPU.

    The cuDNN backend has given wrong gradients (pytorch#196678), and torch prefers it on some GPUs (docs/decisions/0035).
    """
    if device.type == "cpu":
        return contextlib.nullcontext()
    pinned: contextlib.AbstractContextManager[None] = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return pinned


def send(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy values to a device; copies from the CPU to a CUDA device use pinned memory and are asynchronous."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def describe_choices(choices: Sequence[Choice[str] | Choice[int]]) -> list[str]:
    """Format choices as aligned lines of subject, value and reason."""
    subjects = max((len(choice.subject) for choice in choices), default=0)
    values = max((len(str(choice.value)) for choice in choices), default=0)
    return [f"{choice.subject:<{subjects}}  {choice.value!s:<{values}}  {choice.reason}" for choice in choices]


def peak_memory_gib(device: str = "cpu") -> float:
    """Return the peak memory so far in GiB: of this process on the CPU, or of torch's tensors on a CUDA device."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which includes the memory of the parent before it started this process.
        rows = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8", errors="ignore").splitlines() if ":" in line)
        if "VmHWM" in rows:
            return int(rows["VmHWM"].split()[0]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # KiB, but bytes on macOS.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def held_memory() -> int:
    """Return the bytes that this process currently holds; 0 if the system does not report it."""
    path = Path("/proc/self/statm")
    return int(path.read_text(encoding="ascii").split()[1]) * resource.getpagesize() if path.exists() else 0


def free_memory(device: str = "cpu", root: Path = Path("/")) -> int | None:
    """Return the bytes that can still be allocated on a CUDA device, or in this container; None if the system does not report it.

    root: Folder that contains proc and sys.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_read_available(root / "proc/meminfo")]
    for folder, limit, used, kept in (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limits.append(_read_share(root / folder, limit, used, kept))
    known = [one for one in limits if one is not None]
    return min(known) if known else None


def _read_available(path: Path) -> int | None:
    if not path.exists():
        return None
    rows = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines() if ":" in line)
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None


def _read_share(folder: Path, limit: str, used: str, kept: str) -> int | None:
    """Return the bytes that a control group can still allocate; file cache that it could release counts as free."""
    files = [folder / name for name in (limit, used, "memory.stat")]
    if not all(file.exists() for file in files):
        return None
    most, now, stat = (file.read_text(encoding="ascii") for file in files)
    if not most.strip().isdigit():
        return None
    cache = next((int(line.split()[1]) for line in stat.splitlines() if line.split()[0] == kept), 0)
    return max(0, int(most) - int(now) + cache)


def _find_bf16(device: str) -> tuple[bool, str]:
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"the GPU {'computes' if native else 'cannot compute'} in bf16"
    flags = _read_processor_flags()
    native_flag = next((flag for flag in _BF16_FLAGS if flag in flags), None)
    if native_flag:
        return True, f"the processor has {native_flag}"
    return False, "the processor has no bf16 instructions" if flags else "the processor does not report whether it has bf16"


def _read_processor_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the flags of the first processor; empty if the system does not report them."""
    if not path.exists():
        return frozenset()
    for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def read_processor_vendor(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the vendor id of the first processor, such as "AuthenticAMD"; empty if the system does not report it."""
    if not path.exists():
        return ""
    for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "vendor_id":
            return value.strip()
    return ""


def _count_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> tuple[int, str]:
    """Count the cores that this process may use, from its affinity and, in a container, its quota of CPU time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    limit, _, period = quota.read_text(encoding="utf-8").strip().partition(" ") if quota.exists() else ("max", "", "")
    if limit.isdigit() and period.isdigit():
        share = max(1, int(limit) // int(period))
        if share < cores:
            return share, f"the container's share of {cores} cores"
    return cores, "the cores of this process"


def _keep_freed_memory() -> Choice[str]:
    libc = ctypes.CDLL(None)
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER_TRIM), (_M_TOP_PAD, _TOP_PAD_BYTES))
    if all(libc.mallopt(parameter, value) for parameter, value in wanted):
        return Choice("allocator", "tuned", "glibc keeps freed memory: fewer page faults, more memory")
    return Choice("allocator", "default", "glibc refused the change")
