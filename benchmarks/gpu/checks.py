"""Every fast path beside its reference in the same run: relative errors of values and of every gradient, and the time of each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.gpu.parts import say
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
LARGER = ("window of 6", "window of 7")
"""Cases that no preset has: they are checked last."""
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
        cast = layers[dtype]
        cast.kernel = attend_tokens if kernel else None
        tokens = x.to(dtype).requires_grad_()
        out = cast(tokens, plan)
        return [out, *torch.autograd.grad(out, [tokens, *cast.parameters()], given.to(dtype))]

    half = _choose_half(device)
    layers = {torch.float32: layer, half: copy.deepcopy(layer).to(half)}
    qkv = torch.randn(views, math.prod(grid), 3 * dim, device=device, dtype=half, requires_grad=True)
    padding = torch.randn(3 * dim, device=device, dtype=half)
    bias = torch.randn(heads, plan.places, plan.places, device=device, requires_grad=True)
    wanted = given.to(half)

    def alone() -> object:
        return torch.autograd.grad(attend_tokens(qkv, padding, bias, plan, (dim // heads) ** -0.5), [qkv, bias], wanted)

    row = {"case": name, "names": ["out", "x", *(key for key, _ in layer.named_parameters())]}
    row["fewest_bytes"] = 2 * x.numel() * (3 + 1 + 3 + 1 + 3)
    return row | _judge(attend, alone, half, device, rounds)


def check_layer_norm(channels: int, *, rows: int, device: str, rounds: int) -> dict[str, Any]:
    """The fused sum, LayerNorm and cast beside torch's own."""
    from dagman.model.kernels.layer_norm import add_and_normalise

    torch.manual_seed(0)
    half = _choose_half(device)
    x, branch = (torch.randn(2, rows // 2, channels, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(channels, device=device, requires_grad=True) for _ in range(2))
    given = torch.randn(2, 2, rows // 2, channels, device=device)
    halves = branch.detach().to(half).requires_grad_(), given[1].to(half)

    def compute(kernel: bool, dtype: torch.dtype) -> list[Tensor]:
        added, back = halves if dtype == half else (branch, given[1])
        if kernel:
            total, normed = add_and_normalise(x, added, None, weight, bias, 1e-5, dtype)
        else:
            total = x + added
            normed = F.layer_norm(total, (channels,), weight, bias, 1e-5).to(dtype)
        gradients = torch.autograd.grad([total, normed], [x, added, weight, bias], [given[0], back])
        return [total, normed, *gradients]

    row = {"case": f"LayerNorm of {channels}", "names": ["sum", "normed", "x", "branch", "weight", "bias"]}
    row["fewest_bytes"] = x.numel() * (4 + 2 + 4 + 2 + 4 + 4 + 2 + 4 + 2)
    return row | _judge(compute, partial(compute, True, half), half, device, rounds)


def _judge(
    compute: Callable[[bool, torch.dtype], list[Tensor]], alone: Callable[[], object], half: torch.dtype, device: str, rounds: int
) -> dict[str, Any]:
    """Errors and times of a kernel (True) and its reference (False); what fails is told by name, and the rest is still measured.

    alone: The kernel itself, whose time is the one to hold against its fewest bytes.
    """
    exact = compute(False, torch.float32)

    def repeat() -> bool:
        return all(bool((a == b).all()) for a, b in zip(compute(True, half), compute(True, half), strict=True))

    # Half precision first: it is what is trained with, and float32 is the likelier to need more of a card than it has.
    asked: dict[str, Callable[[], Any]] = {
        "half_error": lambda: compare(compute(True, half), exact),
        "reference_half_error": lambda: compare(compute(False, half), exact),
        "again_the_same_bits": repeat,
        "kernel_seconds": lambda: time_call(lambda: compute(True, half), device, rounds=rounds, warm_up=1, ahead=True)["seconds"],
        "reference_seconds": lambda: time_call(lambda: compute(False, half), device, rounds=rounds, warm_up=1, ahead=True)[
            "seconds"
        ],
        "alone_seconds": lambda: time_call(alone, device, rounds=rounds, warm_up=1, ahead=True)["seconds"],
        "fp32_error": lambda: compare(compute(True, torch.float32), exact),
    }
    row: dict[str, Any] = {}
    for key, measure in asked.items():
        try:
            row[key] = measure()
        except Exception as error:
            row[key] = None
            row.setdefault("failures", {})[key] = say(error)
    return row


def _choose_half(device: str) -> torch.dtype:
    """bfloat16 on a card; float16 on a CPU, since Triton's interpreter multiplies bfloat16 wrongly."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float16


def compare(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    """Norm of the difference over the norm of what is wanted, one value a tensor."""
    return [
        float((a.detach().float() - b.detach().float()).norm() / b.detach().float().norm())
        for a, b in zip(got, wanted, strict=True)
    ]
