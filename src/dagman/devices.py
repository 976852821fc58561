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
        return Choice("device", "cpu", "asked for")
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
    asked = "" if name == "auto" else "asked for; "
    return Choice("device", f"cuda:{index}", f"{asked}{torch.cuda.get_device_name(index)}, {gib:.0f} GiB")


def choose_precision(name: str = "auto", device: str = "cpu") -> Choice[str]:
    """Choose `bf16` or `fp32`; for `auto` bf16 if the device supports it in hardware.

    Raises:
        SettingsError: if the name is unknown.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise SettingsError("is not a precision", where=f"precision {name!r}", do="Use auto, fp32, or bf16")
    if name == "fp32":
        return Choice("precision", "fp32", "asked for")
    native, why = _find_bf16(device)
    if name == "bf16":
        return Choice("precision", "bf16", "asked for" if native else f"asked for, but slower than fp32: {why}")
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
        return Choice("kernels", "reference", "asked for")
    cuda = torch.device(device).type == "cuda"
    if name == "auto":
        why = "Triton's have not been measured on a card; train.kernels=triton takes them" if cuda else f"runs on {device}"
        return Choice("kernels", "reference", why)
    if not cuda:
        raise SettingsError("the Triton kernels need a CUDA device", where=f"kernels {name!r}", do="Use auto or reference")
    if importlib.util.find_spec("triton") is None:
        raise SettingsError("the package triton is missing", where=f"kernels {name!r}", do="Install it, or use reference")
    return Choice("kernels", "triton", "asked for")


def choose_compile(name: str = "auto", device: str = "cpu") -> Choice[str]:
    """`off`, `on` (torch.compile of the encoders) or `graphs` (with CUDA graphs); `auto` is off until a card has measured it.

    Raises SettingsError for an unknown name.
    """
    if name not in ("auto", "off", "on", "graphs"):
        raise SettingsError("is not known", where=f"compile {name!r}", do="Use auto, off, on, or graphs")
    if name == "off":
        return Choice("compile", "off", "asked for")
    if torch.device(device).type != "cuda":
        return Choice("compile", "off", f"runs on {device}, where compiled steps were slower (docs/benchmarks.md)")
    if name == "auto":
        return Choice("compile", "off", "has not been measured on a card; train.compile=on takes it")
    return Choice("compile", name, "asked for")


def choose_read_after(steps: int | str = "auto", device: str = "cpu") -> Choice[int]:
    """Steps after which losses are read, 0 or 1; `auto` is 0 until a card has measured it. Raises SettingsError for another."""
    if steps not in ("auto", 0, 1):
        raise SettingsError("is not a number of steps", where=f"read_after {steps!r}", do="Use auto, 0, or 1")
    if torch.device(device).type != "cuda":
        return Choice("read after", 0, f"runs on {device}, where nothing waits")
    if steps == "auto":
        return Choice("read after", 0, "1 has not been measured on a card; train.read_after=1 takes it")
    return Choice("read after", int(steps), "asked for")


def choose_threads() -> Choice[int]:
    """Threads of torch on the CPU: OMP_NUM_THREADS, or the cores this process may use, shared with its siblings under torchrun."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return Choice("threads", int(asked), "OMP_NUM_THREADS")
    return Choice("threads", *share_cores())


def share_cores() -> tuple[int, str]:
    """Cores of this process and which they are; under torchrun, its share of those of the host."""
    cores, why = _count_cores()
    siblings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if siblings > 1:
        return max(1, cores // siblings), f"{why}, shared by {siblings} processes"
    return cores, why


def tune_allocator(mode: Literal["auto", "on", "off"] = "auto", device: str = "cpu") -> Choice[str]:
    """Let glibc keep freed memory in this process, for good: `tuned`, or `default` where that cannot be or does not help.

    By default glibc gives each large tensor back to the system when it is freed, and the next one is paid for again in page
    faults: a third to a half of a training step on a virtual machine. Kept memory costs 0.1 to 1.7 GiB of peak memory.
    `auto` tunes on the CPU alone; `on` wherever the process runs on glibc; `off` never.
    Raises SettingsError for an unknown mode.
    """
    if mode not in ("auto", "on", "off"):
        raise SettingsError("is not a mode", where=f"allocator {mode!r}", do="Use auto, on, or off")
    if mode == "off":
        return Choice("allocator", "default", "asked for")
    if mode == "auto" and device != "cpu":
        return Choice("allocator", "default", f"tensors live on {device}")
    if platform.libc_ver()[0] != "glibc":
        return Choice("allocator", "default", "this system's C library is not glibc")
    preloaded = [name for name in _OTHER_ALLOCATORS if name in os.environ.get("LD_PRELOAD", "")]
    if preloaded:
        return Choice("allocator", "default", f"{preloaded[0]} is preloaded")
    return _keep_freed_memory()


def pin_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A block in which torch's fused attention takes its efficient or its plain kernel alone; on a CPU all is as it comes.

    cuDNN's has given wrong gradients (pytorch#196678), and torch prefers it on some cards (docs/decisions/0035).
    """
    if device.type == "cpu":
        return contextlib.nullcontext()
    pinned: contextlib.AbstractContextManager[None] = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return pinned


def send(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The values on a device; what leaves the CPU for a CUDA device does so from pinned memory, without anyone waiting."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def describe_choices(choices: Sequence[Choice[str] | Choice[int]]) -> list[str]:
    """One aligned line a choice: subject, value, reason."""
    subjects = max((len(choice.subject) for choice in choices), default=0)
    values = max((len(str(choice.value)) for choice in choices), default=0)
    return [f"{choice.subject:<{subjects}}  {choice.value!s:<{values}}  {choice.reason}" for choice in choices]


def peak_memory_gib(device: str = "cpu") -> float:
    """Most memory held so far, in GiB: of this process on the CPU, of torch's tensors on a CUDA device."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which counts what the parent held before it started this process.
        rows = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8", errors="ignore").splitlines() if ":" in line)
        if "VmHWM" in rows:
            return int(rows["VmHWM"].split()[0]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # KiB, but bytes on macOS.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def held_memory() -> int:
    """Bytes that this process holds now; 0 where the system does not state it."""
    path = Path("/proc/self/statm")
    return int(path.read_text(encoding="ascii").split()[1]) * resource.getpagesize() if path.exists() else 0


def free_memory(device: str = "cpu", root: Path = Path("/")) -> int | None:
    """Bytes that may still be taken: of a CUDA device, or of the system within this container; None where nothing states it.

    root: below which proc and sys lie.
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
    """What a control group may still take; the cache of files that it would give up counts as free."""
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
    """Flags of the first processor; none where the system does not tell."""
    if not path.exists():
        return frozenset()
    for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def read_processor_vendor(path: Path = Path("/proc/cpuinfo")) -> str:
    """The first processor's maker as it names itself, such as "AuthenticAMD"; empty where the system does not tell."""
    if not path.exists():
        return ""
    for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "vendor_id":
            return value.strip()
    return ""


def _count_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> tuple[int, str]:
    """Cores this process may run on: its affinity, and in a container its share of time."""
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
