"""Window attention by Triton programs that read tokens where they lie, forward and backward.

The reference gathers windows, projects them, attends, and gathers tokens back; here the projection runs on tokens, and a program
finds a window's rows through the plan's index, so that no roll, pad, partition or reverse is written to memory. The bias of
relative positions and the mask of shifted windows are applied inside. The bias gradient is summed by a fixed number of programs,
each over its own windows in order, and then over the programs in a fixed order: there are no atomics, so two runs give the same
bits.

The operations are registered with torch (`torch.ops.dagman`), so that torch.compile traces through them without a graph break.

Notation: B views, L tokens, W windows, n tokens per window, H heads, D channels per head, C = H * D, P padding tokens,
R = L + P rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dagman.model.kernels import count_programs
from dagman.model.kernels.attention_programs import attend_backward, attend_backward_queries, attend_forward
from dagman.model.windows import WindowPlan

BLOCK = {2: 64, 4: 32}
"""Queries or keys per block, by bytes per number; a window of 4^3 has 64. In float32, twice as many would spill registers."""
LEAST = 16
"""Smallest side of a product on tensor cores."""
FORWARD: dict[str, Any] = {"num_warps": 4, "num_stages": 1}
BACKWARD: dict[str, Any] = {"num_warps": 4, "num_stages": 1}
"""Compiler options of the kernels; `python -m benchmarks.gpu.build` lists the registers and spills that they give."""
PER_PROCESSOR = 6
"""Programs of the backward pass per multiprocessor: full waves if registers allow two or three programs at a time."""
PARTIAL_BYTES = 32 << 20
"""Limit on the size of the partial sums of the bias gradient, which should fit into the GPU's cache."""


def attend_tokens(
    qkv: Float[Tensor, "B L _"],
    padding: Float[Tensor, " _"],
    bias: Float[Tensor, "H n n"],
    plan: WindowPlan,
    scale: float,
) -> Float[Tensor, "B L C"]:
    """Compute window attention of all tokens, equivalent to `gather_windows`, `attend_windows` and `gather_tokens`.

    qkv: Queries, keys and values of all tokens. padding: Those of a zero token, i.e. the bias of their projection.
    """
    if plan.padding:
        qkv = torch.cat([qkv, padding.to(qkv.dtype).expand(len(qkv), plan.padding, -1)], dim=1)
    out: Tensor = torch.ops.dagman.attend_windows(qkv, bias.float(), plan.rows, plan.regions, plan.tokens, scale)[0]
    return out


@torch.library.custom_op(
    "dagman::attend_windows",
    mutates_args=(),
    schema="(Tensor qkv, Tensor bias, Tensor index, Tensor? regions, int tokens, float scale) -> (Tensor, Tensor)",
)
def _attend(
    qkv: Float[Tensor, "B R _"],
    bias: Float[Tensor, "H n n"],
    index: Int[Tensor, " places"],
    regions: Int[Tensor, "W n"] | None,
    tokens: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the attended tokens (B L C) and the log-sum-exp of each query (B W H n)."""
    (B, rows, _), (heads, n, _) = qkv.shape, bias.shape
    windows, sizes = len(index) // n, _size_blocks(qkv, bias, regions)
    out, sums = _allocate(qkv, bias, index, tokens)
    qkv, padded = qkv.contiguous(), _pad(bias, sizes)
    with torch.cuda.device_of(qkv):
        attend_forward[(B * windows * heads * sizes["BLOCKS"],)](
            qkv, padded, index, index if regions is None else regions, out, sums, scale, rows, tokens, windows, **sizes, **FORWARD,
        )  # fmt: skip
    return out, sums


@_attend.register_fake
def _(qkv: Tensor, bias: Tensor, index: Tensor, regions: Tensor | None, tokens: int, scale: float) -> tuple[Tensor, Tensor]:
    return _allocate(qkv, bias, index, tokens)


@torch.library.custom_op(
    "dagman::attend_windows_backward",
    mutates_args=(),
    schema=(
        "(Tensor d_out, Tensor qkv, Tensor bias, Tensor index, Tensor? regions, Tensor out, Tensor sums, float scale)"
        " -> (Tensor, Tensor)"
    ),
)
def _attend_backward(
    d_out: Float[Tensor, "B L C"],
    qkv: Float[Tensor, "B R _"],
    bias: Float[Tensor, "H n n"],
    index: Int[Tensor, " places"],
    regions: Int[Tensor, "W n"] | None,
    out: Float[Tensor, "B L C"],
    sums: Float[Tensor, "B W H n"],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of qkv and bias."""
    d_out, qkv = d_out.contiguous(), qkv.contiguous()
    (B, rows, _), (heads, n, _), tokens = qkv.shape, bias.shape, out.shape[1]
    windows, sizes = len(index) // n, _size_blocks(qkv, bias, regions)
    padded = _pad(bias, sizes)
    blocks, total, side = sizes["BLOCKS"], B * windows, padded.shape[-1]
    parts = min(total, count_programs(qkv.device, PER_PROCESSOR) // (heads * blocks), PARTIAL_BYTES // (4 * padded.numel()))
    parts = max(1, parts)
    d_qkv = torch.empty_like(qkv)
    # If a window has several blocks, each adds to the partial sums; otherwise they are written once.
    partial = (torch.empty if blocks == 1 else torch.zeros)(parts, heads, side, side, dtype=torch.float32, device=qkv.device)
    given = (qkv, padded, index, index if regions is None else regions, out, sums, d_out, d_qkv)
    with torch.cuda.device_of(qkv):
        attend_backward[(parts * heads * blocks,)](
            *given, partial, scale, rows, tokens, windows, total, parts, **sizes, **BACKWARD,
        )  # fmt: skip
        if blocks > 1:
            attend_backward_queries[(total * heads * blocks,)](*given, scale, rows, tokens, windows, **sizes, **FORWARD)
    return d_qkv, partial.sum(0)[:, :n, :n].contiguous()


@_attend_backward.register_fake
def _(
    d_out: Tensor, qkv: Tensor, bias: Tensor, index: Tensor, regions: Tensor | None, out: Tensor, sums: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, index, regions, _, ctx.scale = inputs
    ctx.save_for_backward(qkv, bias, index, regions, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    d_qkv, d_bias = torch.ops.dagman.attend_windows_backward(d_out, *ctx.saved_tensors, ctx.scale)
    return d_qkv, d_bias, None, None, None, None


_attend.register_autograd(_differentiate, setup_context=_keep)


def _allocate(qkv: Tensor, bias: Tensor, index: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    heads, n = bias.shape[:2]
    out = qkv.new_empty(len(qkv), tokens, qkv.shape[2] // 3)
    return out, bias.new_empty(len(qkv), index.shape[0] // n, heads, n)


def _size_blocks(qkv: Tensor, bias: Tensor, regions: Tensor | None) -> dict[str, Any]:
    heads, n = bias.shape[:2]
    width = qkv.shape[2] // 3 // heads
    block = min(BLOCK[qkv.element_size()], max(LEAST, triton.next_power_of_2(n)))
    return {
        "HEADS": heads,
        "N": n,
        "D": width,
        "BLOCK": block,
        "BLOCKS": triton.cdiv(n, block),
        "WIDTH": max(LEAST, triton.next_power_of_2(width)),
        "SHIFTED": regions is not None,
        # A single TF32 product keeps three digits; three of them keep float32's. "ieee" avoids tensor cores, and spills registers.
        "PRECISION": "tf32x3" if qkv.dtype == torch.float32 else "tf32",
    }


def _pad(bias: Tensor, sizes: dict[str, Any]) -> Tensor:
    """Pad the bias to whole blocks; keys beyond the last get -inf."""
    more = sizes["BLOCK"] * sizes["BLOCKS"] - bias.shape[-1]
    return F.pad(F.pad(bias, (0, more), value=-math.inf), (0, 0, 0, more)) if more else bias.contiguous()


@register_flop_formula(torch.ops.dagman.attend_windows)
def _count_flop(qkv: Any, bias: Any, index: Any, *_: object, **__: object) -> int:
    """Count two products: queries with keys, and attention weights with values."""
    return int(2 * 2 * qkv[0] * index[0] * bias[1] * qkv[2] // 3)


@register_flop_formula(torch.ops.dagman.attend_windows_backward)
def _count_backward_flop(_: Any, qkv: Any, bias: Any, index: Any, *__: object, **___: object) -> int:
    """Count five products: the logits again, and the gradients of attention weights, values, keys and queries."""
    return 5 * _count_flop(qkv, bias, index) // 2
