"""Proves that every choice of device, precision, threads and allocator follows what the machine has, and says why.

What the machine has is stood in for; the allocator, which acts on the whole process, is watched in a process of its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dagman import devices
from dagman.devices import (
    Choice,
    choose_compile,
    choose_device,
    choose_precision,
    choose_read_after,
    choose_threads,
    describe_choices,
    peak_memory_gib,
    tune_allocator,
)
from dagman.errors import SettingsError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=80 * 2**30))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_is_taken():
    assert choose_device() == Choice("device", "cpu", "no CUDA device is visible")
    assert choose_device("cpu").reason == "requested"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("name", "value"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_with_gpus_the_first_or_the_named_one_is_taken(name: str, value: str):
    assert choose_device(name).value == value


@pytest.mark.usefixtures("two_gpus")
def test_each_process_of_a_host_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == Choice("device", "cuda:1", "GPU 1, 80 GiB")
    assert choose_device("cuda:0").value == "cuda:0"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(SettingsError) as error:
        choose_device("cuda:2")
    assert str(error.value) == "device 'cuda:2': there is no CUDA device 2: 2 are visible. Use auto or cpu."


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_is_refused_where_there_is_none():
    with pytest.raises(SettingsError, match="none is visible"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "cpu:0"])
def test_an_unknown_device_is_refused(name: str):
    with pytest.raises(SettingsError, match="Use auto, cpu, cuda, or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize(
    ("cpuinfo", "value", "reason"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n", "bf16", "the processor has avx512_bf16"),
        ("flags\t\t: amx_bf16 amx_tile\n", "bf16", "the processor has amx_bf16"),
        ("Features\t: fp asimd bf16\n", "bf16", "the processor has bf16"),
        ("flags\t\t: fpu avx2 avx512f\n", "fp32", "the processor has no bf16 instructions"),
        ("model name : unknown\n", "fp32", "the processor does not report whether it has bf16"),
    ],
)
def test_precision_follows_the_processor(cpuinfo: str, value: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    flags = devices._read_processor_flags(tmp_path / "cpuinfo")
    monkeypatch.setattr(devices, "_read_processor_flags", lambda: flags)
    assert choose_precision() == Choice("precision", value, reason)
    assert choose_precision("fp32").value == "fp32"
    asked = choose_precision("bf16")
    assert asked.value == "bf16"
    assert ("slower" in asked.reason) is (value == "fp32")


def test_a_system_without_cpuinfo_has_no_flags(tmp_path: Path):
    assert devices._read_processor_flags(tmp_path / "absent") == frozenset()


@pytest.mark.parametrize(("native", "value"), [(True, "bf16"), (False, "fp32")])
def test_precision_follows_the_gpu(native: bool, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_precision("auto", "cuda:0").value == value


def test_an_unknown_precision_is_refused():
    with pytest.raises(SettingsError, match="Use auto, fp32, or bf16"):
        choose_precision("fp16")


def test_threads_are_those_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads() == Choice("threads", 3, "OMP_NUM_THREADS")


@pytest.mark.parametrize(("siblings", "threads"), [("1", 8), ("4", 2), ("16", 1)])
def test_cores_are_shared_by_the_processes_of_a_host(siblings: str, threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", siblings)
    monkeypatch.setattr(devices, "_count_cores", lambda: (8, "the cores of this process"))
    assert choose_threads().value == threads


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000\n", 4), ("200000 100000\n", 2), ("50000 100000\n", 1), ("900000 100000\n", 4), (None, 4)]
)
def test_a_container_counts_its_share_of_the_cores(quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert devices._count_cores(tmp_path / "cpu.max")[0] == cores


_ALLOCATE = """
import resource, sys, torch
from dagman.devices import tune_allocator
choice = tune_allocator(sys.argv[1])
faults = []
for _ in range(25):
    torch.ones(12 << 20)  # 48 MiB: above what glibc keeps by itself
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(choice.value, faults[-1] - faults[-6])
"""


def _allocate(mode: str) -> tuple[str, int]:
    """What was chosen, and the page faults of five large tensors, one after the other, once the heap has grown."""
    run = subprocess.run([sys.executable, "-c", _ALLOCATE, mode], capture_output=True, text=True, check=True)
    value, faults = run.stdout.split()
    return value, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_tuned_allocator_pays_for_its_pages_once():
    assert _allocate("on") == ("tuned", pytest.approx(0, abs=10))
    value, faults = _allocate("off")
    assert value == "default"
    assert faults > 50


@pytest.mark.parametrize(
    ("mode", "device", "libc", "preload", "reason"),
    [
        ("off", "cpu", "glibc", "", "requested"),
        ("auto", "cuda:0", "glibc", "", "tensors live on cuda:0"),
        ("auto", "cpu", "", "", "this system's C library is not glibc"),
        ("on", "cpu", "glibc", "libtcmalloc_minimal.so.4", "tcmalloc is preloaded"),
    ],
)
def test_the_allocator_is_left_alone_with_a_reason(
    mode: str, device: str, libc: str, preload: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setenv("LD_PRELOAD", preload)
    monkeypatch.setattr(devices, "_keep_freed_memory", lambda: pytest.fail("the allocator was changed"))
    assert tune_allocator(mode, device) == Choice("allocator", "default", reason)


@pytest.mark.parametrize(("accepted", "value"), [(1, "tuned"), (0, "default")])
def test_a_refusal_by_glibc_is_said(accepted: int, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda parameter, wanted: accepted))
    assert devices._keep_freed_memory().value == value


def test_an_unknown_mode_is_refused():
    with pytest.raises(SettingsError, match="Use auto, on, or off"):
        tune_allocator("yes")


def test_choices_are_told_in_aligned_lines():
    choices = [Choice("device", "cpu", "no CUDA device is visible"), Choice("threads", 2, "OMP_NUM_THREADS")]
    assert describe_choices(choices) == ["device   cpu  no CUDA device is visible", "threads  2    OMP_NUM_THREADS"]
    assert describe_choices([]) == []
    assert str(choices[1]) == "threads: 2 (OMP_NUM_THREADS)"


def test_peak_memory_is_that_of_the_process():
    before = peak_memory_gib()
    assert 0.05 < before < 200
    assert peak_memory_gib() >= before


def test_fast_paths_that_no_card_has_judged_are_off_and_say_so():
    for device in ("cpu", "cuda:0"):
        assert choose_compile("auto", device).value == "off"
        assert choose_read_after("auto", device).value == 0
    assert "has not been measured on a GPU" in choose_compile("auto", "cuda:0").reason
    assert (choose_compile("graphs", "cuda:0").value, choose_read_after(1, "cuda:0").value) == ("graphs", 1)
    # Asked for where it cannot be: the reason is printed, and the run goes on.
    assert choose_compile("on", "cpu").value == "off"
    assert "where compiled steps were slower" in choose_compile("on", "cpu").reason
    assert choose_read_after(1, "cpu").value == 0
    for refused in (lambda: choose_compile("fast"), lambda: choose_read_after(2)):
        with pytest.raises(SettingsError):
            refused()
