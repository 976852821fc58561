"""Every fast path beside its reference in the same run: relative errors of values and of every gradient, and the time of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.gpu.timing import time_call
from torch import Tensor

from dagman.model.window_attention import WindowAttention
from dagman.model.windows import plan_windows

Case = tuple[tuple[int, int, int], int, int, int, int]
"""Grid, window side, shift, heads, channels."""
ATTENTION: dict[str, Case] = {
    "small, stage 1, shifted": ((48, 48, 48), 4, 2, 4, 48),
    "small, stage 3": ((12, 12, 12), 4, 0, 8, 192),
    "small, stage 4, padded": ((6, 6, 6), 4, 2, 16, 384),
    "heads of 32": ((16, 16, 16), 4, 2, 4, 128),
    "window of 6": ((18, 18, 18), 6, 3, 4, 96),
    "window of 7": ((21, 21, 21), 7, 3, 4, 96),
}
SMALL_ATTENTION: dict[str, Case] = {"padded and shifted": ((5, 6, 3), 4, 2, 1, 24)}


def check_attention(name: str, case: Case, *, views: int, device: str, rounds: int) -> dict[str, Any]:
    """Window attention by kernel and by reference: errors in fp32 and in half precision, times of forward and backward together."""
    from dagman.model.kernels.window_attention import attend_tokens

    grid, side, shift, heads, dim = case
    torch.manual_seed(0)
    layer = WindowAttention(dim, heads, side).to(device)
    plan = plan_windows(grid, side, shift, torch.device(device))
    x = torch.randn(views, math.prod(grid), dim, device=device)
    given = torch.randn_like(x)

    def attend(kernel: bool, dtype: torch.dtype) -> list[Tensor]:
        layer.kernel = attend_tokens if kernel else None
        cast = layer.to(dtype)
        tokens = x.to(dtype).requires_grad_()
        out = cast(tokens, plan)
        return [out, *torch.autograd.grad(out, [tokens, *cast.parameters()], given.to(dtype))]

    half = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float16
    exact = attend(False, torch.float32)
    row = {
        "case": name,
        "fp32_error": compare(attend(True, torch.float32), exact),
        "half_error": compare(attend(True, half), exact),
        "reference_half_error": compare(attend(False, half), exact),
        "names": ["out", "x", *(key for key, _ in layer.named_parameters())],
    }
    once = time_call(lambda: attend(True, half), device, rounds=rounds, warm_up=1)
    row["again_the_same_bits"] = all(bool((a == b).all()) for a, b in zip(attend(True, half), attend(True, half), strict=True))
    row["kernel_seconds"] = once["seconds"]
    row["reference_seconds"] = time_call(lambda: attend(False, half), device, rounds=rounds, warm_up=1)["seconds"]
    row["fewest_bytes"] = 2 * x.numel() * (3 + 1 + 3 + 1 + 3)
    return row


def check_layer_norm(channels: int, *, rows: int, device: str, rounds: int) -> dict[str, Any]:
    """The fused sum, LayerNorm and cast beside torch's own."""
    from dagman.model.kernels.layer_norm import add_and_normalise

    torch.manual_seed(0)
    half = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float16
    x, branch = (torch.randn(2, rows // 2, channels, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(channels, device=device, requires_grad=True) for _ in range(2))
    given = torch.randn(2, 2, rows // 2, channels, device=device)

    def compute(kernel: bool, dtype: torch.dtype) -> list[Tensor]:
        added = branch.to(dtype)
        if kernel:
            total, normed = add_and_normalise(x, added, None, weight, bias, 1e-5, dtype)
        else:
            total = x + added
            normed = F.layer_norm(total, (channels,), weight, bias, 1e-5).to(dtype)
        gradients = torch.autograd.grad([total, normed], [x, branch, weight, bias], [given[0], given[1].to(dtype)])
        return [total, normed, *gradients]

    exact = compute(False, torch.float32)
    kernel = time_call(lambda: compute(True, half), device, rounds=rounds, warm_up=1)["seconds"]
    return {
        "case": f"LayerNorm of {channels}",
        "fp32_error": compare(compute(True, torch.float32), exact),
        "half_error": compare(compute(True, half), exact),
        "reference_half_error": compare(compute(False, half), exact),
        "names": ["sum", "normed", "x", "branch", "weight", "bias"],
        "again_the_same_bits": all(bool((a == b).all()) for a, b in zip(compute(True, half), compute(True, half), strict=True)),
        "kernel_seconds": kernel,
        "reference_seconds": time_call(lambda: compute(False, half), device, rounds=rounds, warm_up=1)["seconds"],
        "fewest_bytes": x.numel() * (4 + 2 + 4 + 2 + 4 + 4 + 2 + 4 + 2),
    }


def compare(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    """Norm of the difference over the norm of what is wanted, one value a tensor."""
    return [
        float((a.detach().float() - b.detach().float()).norm() / b.detach().float().norm())
        for a, b in zip(got, wanted, strict=True)
    ]


def guard(call: Callable[[], dict[str, Any]], name: str) -> dict[str, Any]:
    """What `call` gives, or its error in one line: a kernel that fails to compile must not cost the rest of a short lease."""
    try:
        return call()
    except Exception as error:
        return {"case": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
