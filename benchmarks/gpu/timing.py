"""Seconds of a call: CUDA events on a card, the wall clock on a CPU; medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

SPIN = 10_000_000
"""Cycles that a card spins while the host queues: about five milliseconds."""


def time_call(call: Callable[[], object], device: str, *, rounds: int, warm_up: int = 2, ahead: bool = False) -> dict[str, Any]:
    """Median, least and most seconds of `rounds` calls after `warm_up` ones, and the peak memory in GiB (a card's alone).

    ahead: The host queues the call while the card still spins, so that a short call is timed without the host's share.
    """
    for _ in range(warm_up):
        call()
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = [_time_on_card(call, ahead) if cuda else _time_on_cpu(call) for _ in range(rounds)]
    return {
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "rounds": rounds,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def _time_on_cpu(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _time_on_card(call: Callable[[], object], ahead: bool) -> float:
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if ahead:
        torch.cuda._sleep(SPIN)
    began.record()
    call()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000
