"""What the machine can do at most: bytes a second of a large copy, operations a second of a large product."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.gpu.timing import time_call


def measure_ceilings(device: str, *, copied_mib: int, side: int, rounds: int) -> dict[str, Any]:
    """copied_mib: size of the tensor copied (read and written once). side: of the square bf16 matrices multiplied."""
    source = torch.empty(copied_mib << 18, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    copied = time_call(lambda: target.copy_(source), device, rounds=rounds)
    left, right = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    multiplied = time_call(lambda: left @ right, device, rounds=rounds)
    return {
        "bytes_per_s": 2 * source.nbytes / copied["least"],
        "bf16_flop_per_s": 2 * side**3 / multiplied["least"],
        "copied_mib": copied_mib,
        "side": side,
    }
