"""Whole steps by each fast path beside the plain step of the same run: losses, time, memory, and how often the host waits."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.gpu.parts import say
from benchmarks.gpu.timing import time_call
from benchmarks.gpu.work import Work, build_work

# The plain path computes every window, which train.skip_hidden=auto on a CPU would not.
COMPARED = ("total", "amip", "ampd", "aitd", "gitd", "grad_norm")
PATHS: dict[str, dict[str, Any]] = {
    "plain": {"assignments": ["train.skip_hidden=false"]},
    "read a step later": {"read_after": 1},
    "hidden windows once": {"assignments": ["train.skip_hidden=true"]},
    "compiled": {"compiled": "on", "read_after": 1},
    "compiled, Triton": {"compiled": "on", "kernels": "triton", "read_after": 1},
    "CUDA graphs": {"compiled": "graphs", "read_after": 1},
    "Triton": {"kernels": "triton", "read_after": 1},
    "Triton, hidden windows once": {"kernels": "triton", "read_after": 1, "assignments": ["train.skip_hidden=true"]},
}
SLOW_TO_BUILD = ("compiled", "compiled, Triton", "CUDA graphs")
ON_A_CPU = ("plain", "read a step later", "hidden windows once")
"""Paths that need neither a compiler nor a card."""


def time_path(name: str, size: str, views: int, device: str, rounds: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One path's row: seconds, memory, losses of the first step and how far they lie from those of the plain path in `found`.

    Without a plain row to stand beside, `apart` and `faster` are None.
    """
    torch.manual_seed(0)
    work = build_work(size, batch=views, device=device, precision="bf16", **PATHS[name])
    work.step()
    told = work.last()
    row: dict[str, Any] = {"name": size, "views": views, "path": name, "skip_hidden": work.student.encoder.skips_hidden}
    row["losses"] = {key: told[key] for key in COMPARED if key in told}
    row |= time_call(work.step, device, rounds=rounds, warm_up=1)
    try:
        row["waits"] = count_waits(work, device)
    except Exception as error:
        row |= {"waits": None, "waits_failed": say(error)}
    plain = row if name == "plain" else next((one for one in found if one["path"] == "plain" and one["name"] == size), None)
    row["apart"] = plain and max(abs(value / plain["losses"][key] - 1) for key, value in row["losses"].items())
    row["faster"] = plain and plain["seconds"] / row["seconds"]
    return row


def count_waits(work: Work, device: str) -> int | None:
    """How often the host waits for the card in one step, its one reading of losses apart; None on a CPU."""
    if device != "cuda":
        return None
    import warnings

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in told)
