"""Window attention as one Triton kernel, forward and backward, that reads tokens where they lie.

The reference gathers windows, projects them, attends, and gathers tokens back; here the projection runs on tokens, and the kernel
finds a window's rows through the plan's index, so that no roll, pad, partition or reverse is ever written to memory. The bias of
relative positions and the mask of shifted windows are applied inside. A bias gradient is summed by a fixed number of programs,
each over its own windows in order, and a second pass in fixed order: no atomics, so two runs give the same bits.

Letters: B views, L tokens, W windows, n tokens of a window, H heads, D channels of a head, C = H * D, P places of padding, S parts.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from dagman.model.windows import WindowPlan, keep_results

QUERIES = 64
"""Queries at a time; a window of 4^3 has as many."""
FEWER_QUERIES = {2: 32, 4: 16}
"""Of windows with more places, by the bytes of a number: what 512 keys need beside them still fits a Hopper's shared memory."""
LEAST = 16
"""Smallest side of a product on tensor cores."""
PARTIAL_BYTES = 64 << 20
"""Limit of the partial sums of the bias gradient."""
MOST_PARTS = 128


def attend_tokens(
    qkv: Float[Tensor, "B L _"],
    padding: Float[Tensor, " _"],
    bias: Float[Tensor, "H n n"],
    plan: WindowPlan,
    scale: float,
) -> Float[Tensor, "B L C"]:
    """Attention of each token in the plan's windows; `gather_windows`, `attend_windows` and `gather_tokens` in one.

    qkv: queries, keys and values of every token, contiguous. padding: those of a token of zeros, the bias of their projection.
    """
    index, count = _number_places(plan)
    if count:
        qkv = torch.cat([qkv, padding.to(qkv.dtype).expand(len(qkv), count, -1)], dim=1)
    return _AttendTokens.apply(qkv.contiguous(), bias.float().contiguous(), index, plan, scale)


@keep_results
def _number_places(plan: WindowPlan) -> tuple[Int[Tensor, " places"], int]:
    """The row of each place of each window, int32, and P: each place of padding has a row of its own after the tokens."""
    padded = ~plan.valid.flatten()
    rows = torch.where(padded, plan.tokens + padded.cumsum(0) - 1, plan.to_windows)
    return rows.int().contiguous(), int(padded.sum())


class _AttendTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, index: Tensor, plan: WindowPlan, scale: float) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        ctx.index, ctx.plan, ctx.scale = index, plan, scale
        B, rows, width = qkv.shape
        out = qkv.new_empty(B, plan.tokens, width // 3)
        n, heads = plan.places, len(bias)
        _attend_forward[(B * len(plan.valid), heads)](
            qkv, bias, index, _regions(plan, index), out, scale, rows, plan.tokens, len(plan.valid), n, width // 3 // heads,
            HEADS=heads, **_sizes(n, width // 3 // heads, plan, qkv.dtype),
        )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        qkv, bias = ctx.saved_tensors
        plan: WindowPlan = ctx.plan
        B, rows, width = qkv.shape
        n, heads, windows = plan.places, len(bias), B * len(plan.valid)
        parts = max(1, min(windows, MOST_PARTS, PARTIAL_BYTES // (heads * n * n * 4)))
        d_qkv = torch.empty_like(qkv)
        partial = torch.zeros(parts, heads, n, n, dtype=torch.float32, device=qkv.device)
        _attend_backward[(parts, heads)](
            qkv, bias, ctx.index, _regions(plan, ctx.index), gradients[0].contiguous(), d_qkv, partial,
            ctx.scale, rows, plan.tokens, len(plan.valid), windows, parts, n, width // 3 // heads,
            HEADS=heads, **_sizes(n, width // 3 // heads, plan, qkv.dtype),
        )  # fmt: skip
        return d_qkv, partial.sum(0), None, None, None


def _regions(plan: WindowPlan, otherwise: Tensor) -> Tensor:
    """A kernel needs a pointer even where nothing is shifted and it reads none."""
    return otherwise if plan.regions is None else plan.regions


def _sizes(n: int, width: int, plan: WindowPlan, dtype: torch.dtype) -> dict[str, Any]:
    keys = max(LEAST, triton.next_power_of_2(n))
    block = min(keys, QUERIES if keys <= QUERIES else FEWER_QUERIES[dtype.itemsize])
    return {
        "KEYS": keys,
        "BLOCK": block,
        "BLOCKS": math.ceil(n / block),
        "WIDTH": max(LEAST, triton.next_power_of_2(width)),
        "SHIFTED": plan.regions is not None,
        # TF32, the default for float32, keeps three digits.
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "num_warps": 4 if keys <= QUERIES else 8,
        # Blocks fetched ahead would each take shared memory of their own.
        "num_stages": 1,
    }


@triton.jit
@no_type_check
def _probabilities(
    q, k, bias, regions, window, head, rows_q, rows_k, scale, n, SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Rows that are no queries of the window keep finite logits, so that nothing becomes NaN; they are never stored.
    inside = (rows_q < n)[:, None] & (rows_k < n)[None, :]
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    logits += tl.load(bias + head * n * n + rows_q[:, None] * n + rows_k[None, :], mask=inside, other=0.0)
    if SHIFTED:
        region_q = tl.load(regions + window * n + rows_q, mask=rows_q < n, other=0)
        region_k = tl.load(regions + window * n + rows_k, mask=rows_k < n, other=0)
        logits = tl.where((region_q[:, None] != region_k[None, :]) & inside, float("-inf"), logits)
    logits = tl.where((rows_k < n)[None, :], logits, float("-inf"))
    shares = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return shares / tl.sum(shares, axis=1)[:, None]


@triton.jit
@no_type_check
def _attend_forward(
    qkv, bias, index, regions, out, scale, rows, tokens, windows, n, width,
    HEADS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    place, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    view, window = place // windows, place % windows
    channels = HEADS * width
    column = tl.arange(0, WIDTH)
    keys = tl.arange(0, KEYS)
    row_k = tl.load(index + window * n + keys, mask=keys < n, other=0)
    at_k = qkv + (view * rows + row_k[:, None]) * (3 * channels) + head * width + column[None, :]
    real_k = (keys < n)[:, None] & (column < width)[None, :]
    k = tl.load(at_k + channels, mask=real_k, other=0.0)
    v = tl.load(at_k + 2 * channels, mask=real_k, other=0.0)
    for block in range(BLOCKS):
        queries = block * BLOCK + tl.arange(0, BLOCK)
        row_q = tl.load(index + window * n + queries, mask=queries < n, other=0)
        real_q = (queries < n)[:, None] & (column < width)[None, :]
        q = tl.load(qkv + (view * rows + row_q[:, None]) * (3 * channels) + head * width + column[None, :], mask=real_q, other=0.0)
        p = _probabilities(q, k, bias, regions, window, head, queries, keys, scale, n, SHIFTED, PRECISION)
        attended = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        at = out + (view * tokens + row_q[:, None]) * channels + head * width + column[None, :]
        tl.store(at, attended.to(out.dtype.element_ty), mask=real_q & (row_q < tokens)[:, None])


@triton.jit
@no_type_check
def _attend_backward(
    qkv, bias, index, regions, d_out, d_qkv, partial, scale, rows, tokens, windows, total, parts, n, width,
    HEADS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    part, head = tl.program_id(0), tl.program_id(1)
    channels = HEADS * width
    column = tl.arange(0, WIDTH)
    keys = tl.arange(0, KEYS)
    bias_sum = tl.zeros((BLOCK, KEYS), dtype=tl.float32)
    for number in range(part, total, parts):
        place = tl.cast(number, tl.int64)
        view, window = place // windows, place % windows
        row_k = tl.load(index + window * n + keys, mask=keys < n, other=0)
        offset_k = (view * rows + row_k[:, None]) * (3 * channels) + head * width + column[None, :]
        real_k = (keys < n)[:, None] & (column < width)[None, :]
        k = tl.load(qkv + offset_k + channels, mask=real_k, other=0.0)
        v = tl.load(qkv + offset_k + 2 * channels, mask=real_k, other=0.0)
        d_k = tl.zeros((KEYS, WIDTH), dtype=tl.float32)
        d_v = tl.zeros((KEYS, WIDTH), dtype=tl.float32)
        for block in range(BLOCKS):
            queries = block * BLOCK + tl.arange(0, BLOCK)
            row_q = tl.load(index + window * n + queries, mask=queries < n, other=0)
            real_q = (queries < n)[:, None] & (column < width)[None, :]
            offset_q = (view * rows + row_q[:, None]) * (3 * channels) + head * width + column[None, :]
            q = tl.load(qkv + offset_q, mask=real_q, other=0.0)
            at = (view * tokens + row_q[:, None]) * channels + head * width + column[None, :]
            given = tl.load(d_out + at, mask=real_q & (row_q < tokens)[:, None], other=0.0)
            p = _probabilities(q, k, bias, regions, window, head, queries, keys, scale, n, SHIFTED, PRECISION)
            d_p = tl.dot(given, tl.trans(v), input_precision=PRECISION)
            d_logits = p * (d_p - tl.sum(p * d_p, axis=1)[:, None])
            if BLOCKS == 1:
                bias_sum += d_logits
            else:
                # Too large for registers. This program alone reads and writes this part, window after window: the order is fixed.
                sums = partial + (part * HEADS + head).to(tl.int64) * n * n + queries[:, None] * n + keys[None, :]
                inside = (queries < n)[:, None] & (keys < n)[None, :]
                tl.store(sums, tl.load(sums, mask=inside, other=0.0) + d_logits, mask=inside)
                tl.debug_barrier()
            d_logits = d_logits.to(q.dtype)
            d_q = tl.dot(d_logits, k, input_precision=PRECISION) * scale
            tl.store(d_qkv + offset_q, d_q.to(d_qkv.dtype.element_ty), mask=real_q)
            d_k += tl.dot(tl.trans(d_logits), q, input_precision=PRECISION) * scale
            d_v += tl.dot(tl.trans(p.to(given.dtype)), given, input_precision=PRECISION)
        tl.store(d_qkv + offset_k + channels, d_k.to(d_qkv.dtype.element_ty), mask=real_k)
        tl.store(d_qkv + offset_k + 2 * channels, d_v.to(d_qkv.dtype.element_ty), mask=real_k)
    if BLOCKS == 1:
        places = tl.arange(0, BLOCK)
        sums = partial + (part * HEADS + head).to(tl.int64) * n * n + places[:, None] * n + keys[None, :]
        tl.store(sums, bias_sum, mask=(places < n)[:, None] & (keys < n)[None, :])
