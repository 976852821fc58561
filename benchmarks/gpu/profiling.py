"""Where a step's time goes, by kind of operation."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from benchmarks.gpu.work import Work
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "attention": ("attend_", "softmax", "bmm", "baddbmm", "scaled_dot", "fmha", "attention"),
    "norm": ("normalise_", "layer_norm", "layernorm", "native_layer"),
    "linear": ("addmm", "gemm", "linear", "::mm", "cutlass", "nvjet", "mkldnn"),
    "optimiser": ("adam", "lerp", "foreach", "clip", "multi_tensor"),
    "copies": ("copy", "index", "gather", "cat", "memcpy", "memset", "pad", "contiguous", "clone", "fill", "elementwise"),
}
"""Words in the names of kernels and operators; the first kind with a word that occurs takes it."""


def profile_step(work: Work, device: str) -> dict[str, Any]:
    """Share of one step's own time by kind, and the ten largest entries."""
    cuda = torch.device(device).type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        work.step()
        if cuda:
            torch.cuda.synchronize()
    seconds: dict[str, float] = defaultdict(float)
    rows = []
    for event in found.key_averages():
        if cuda and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        own = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        seconds[name_kind(event.key)] += own
        rows.append({"name": event.key[:80], "seconds": own, "calls": event.count})
    total = sum(seconds.values()) or 1.0
    return {
        "share": {kind: value / total for kind, value in sorted(seconds.items(), key=lambda one: -one[1])},
        "seconds": total,
        "largest": sorted(rows, key=lambda row: -row["seconds"])[:10],
    }


def name_kind(key: str) -> str:
    """The kind of a kernel or operator by its name; `rest` where no word occurs."""
    lower = key.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), "rest")
