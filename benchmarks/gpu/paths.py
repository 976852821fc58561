"""Whole steps by each fast path beside the plain step of the same run: losses, time, memory, and how often the host waits."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.gpu.timing import time_call
from benchmarks.gpu.work import Work, build_work

COMPARED = ("total", "amip", "ampd", "aitd", "gitd", "grad_norm")
PATHS: dict[str, dict[str, Any]] = {
    "plain": {},
    "read a step later": {"read_after": 1},
    "hidden windows once": {"assignments": ["train.skip_hidden=true"]},
    "compiled": {"compiled": "on", "read_after": 1},
    "CUDA graphs": {"compiled": "graphs", "read_after": 1},
    "Triton": {"kernels": "triton", "read_after": 1},
    "Triton, hidden windows once": {"kernels": "triton", "read_after": 1, "assignments": ["train.skip_hidden=true"]},
}
ON_A_CPU = ("plain", "read a step later", "hidden windows once")
"""Paths that need neither a compiler nor a card."""


def time_path(name: str, size: str, views: int, device: str, rounds: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One path's row: seconds, memory, losses of the first step and how far they lie from those of the plain path in `found`."""
    row: dict[str, Any] = {"name": size, "views": views, "path": name}
    try:
        torch.manual_seed(0)
        work = build_work(size, batch=views, device=device, precision="bf16", **PATHS[name])
        work.step()
        told = work.last()
        row["losses"] = {key: told[key] for key in COMPARED if key in told}
        row |= time_call(work.step, device, rounds=rounds, warm_up=1)
        row["waits"] = count_waits(work, device)
    except torch.OutOfMemoryError:
        return row | {"failed": "does not fit"}
    except Exception as error:
        return row | {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    finally:
        torch.compiler.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
    plain = next((one for one in found if one["path"] == "plain" and one["name"] == size and "losses" in one), row)
    row["apart"] = max(abs(value / plain["losses"][key] - 1) for key, value in row["losses"].items())
    row["faster"] = plain["seconds"] / row["seconds"]
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


def compare_joined(size: str, views: int, side: int, device: str, rounds: int) -> dict[str, Any]:
    """The teacher's clean and noisy pass as two and as one of twice the views, in bf16 without gradient."""
    from benchmarks.swin_step import SIZES

    from dagman.model import SwinEncoder

    encoder = SwinEncoder(SIZES[size][0]).to(device)
    view = torch.rand(views, 1, side, side, side, device=device)
    hidden = torch.rand(views, *(side // 2,) * 3, device=device) < 0.7
    clean = torch.zeros_like(hidden)

    def run(joined: bool) -> None:
        with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16):
            if joined:
                encoder(torch.cat([view, view]), torch.cat([hidden, clean]))
            else:
                encoder(view, hidden)
                encoder(view, None, None, 3)

    two, one = (time_call(lambda joined=joined: run(joined), device, rounds=rounds) for joined in (False, True))
    return {"name": f"{size}, {views} views of {side}^3", "two": two["seconds"], "one": one["seconds"]}
