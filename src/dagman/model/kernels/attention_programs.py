"""The Triton programs of window attention: forward, backward by blocks of keys, and backward by blocks of queries.

A program handles one head and one block of a window's queries or keys, and goes through the window's other blocks in a loop, so
that registers and shared memory do not grow with the window. Heads are the fastest axis of the grid: programs that run side by
side read neighbouring channels of the same tokens, and share the sectors of memory that hold them. Sizes that decide how wide
loads can be are compile-time constants.

Notation as in `window_attention`. HEADS, N (tokens of a window), D (channels of a head): sizes of the attention. BLOCK: queries or
keys at a time; BLOCKS of them cover N. SIDE = BLOCK * BLOCKS: of the bias, which has a row for each query. WIDTH: D rounded up to
what tensor cores multiply.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
"""Running maximum before the first block: finite, because a block may hold no key that a query may attend to."""
SIZES_AT_RUN_TIME = ["rows", "tokens", "windows", "total", "parts"]
"""One build serves grids and batches of every size."""


@triton.jit
@no_type_check
def _score(
    q, k, bias, regions, window, head, queries, keys, scale,
    N: tl.constexpr, SIDE: tl.constexpr, SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # The bias is -inf for keys past the last.
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    logits += tl.load(bias + (head * SIDE + queries[:, None]) * SIDE + keys[None, :])
    if SHIFTED:
        region_q = tl.load(regions + window * N + queries, mask=queries < N, other=0)
        region_k = tl.load(regions + window * N + keys, mask=keys < N, other=0)
        logits = tl.where(region_q[:, None] != region_k[None, :], float("-inf"), logits)
    return logits


@triton.jit(do_not_specialize=SIZES_AT_RUN_TIME)
@no_type_check
def attend_forward(
    qkv, bias, index, regions, out, sums, scale, rows, tokens, windows,
    HEADS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attended tokens of one head and block of queries, with a running maximum and sum over blocks of keys."""
    program = tl.program_id(0)
    head, block = program % HEADS, program // HEADS % BLOCKS
    place = (program // (HEADS * BLOCKS)).to(tl.int64)
    view, window = place // windows, place % windows
    column = tl.arange(0, WIDTH)
    queries = block * BLOCK + tl.arange(0, BLOCK)
    row_q = tl.load(index + window * N + queries, mask=queries < N, other=0)
    real_q = (queries < N)[:, None] & (column < D)[None, :]
    q = tl.load(qkv + (view * rows + row_q)[:, None] * (3 * HEADS * D) + head * D + column[None, :], mask=real_q, other=0.0)
    most = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    attended = tl.zeros((BLOCK, WIDTH), tl.float32)
    for number in range(BLOCKS):
        keys = number * BLOCK + tl.arange(0, BLOCK)
        row_k = tl.load(index + window * N + keys, mask=keys < N, other=0)
        at_k = qkv + (view * rows + row_k)[:, None] * (3 * HEADS * D) + head * D + column[None, :]
        real_k = (keys < N)[:, None] & (column < D)[None, :]
        k = tl.load(at_k + HEADS * D, mask=real_k, other=0.0)
        v = tl.load(at_k + 2 * HEADS * D, mask=real_k, other=0.0)
        logits = _score(q, k, bias, regions, window, head, queries, keys, scale, N, BLOCK * BLOCKS, SHIFTED, PRECISION)
        now = tl.maximum(most, tl.max(logits, axis=1))
        shares = tl.exp(logits - now[:, None])
        kept = tl.exp(most - now)
        total = total * kept + tl.sum(shares, axis=1)
        attended = attended * kept[:, None] + tl.dot(shares.to(v.dtype), v, input_precision=PRECISION)
        most = now
    attended /= total[:, None]
    at = out + (view * tokens + row_q)[:, None] * (HEADS * D) + head * D + column[None, :]
    tl.store(at, attended.to(out.dtype.element_ty), mask=real_q & (row_q < tokens)[:, None])
    tl.store(sums + (place * HEADS + head) * N + queries, most + tl.log(total), mask=queries < N)


@triton.jit(do_not_specialize=SIZES_AT_RUN_TIME)
@no_type_check
def attend_backward(
    qkv, bias, index, regions, out, sums, d_out, d_qkv, partial, scale, rows, tokens, windows, total, parts,
    HEADS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, values and bias for one block of keys in every `parts`-th window of all views.

    If that block is the whole window, the gradient of the queries too.
    """
    program = tl.program_id(0)
    head, block, part = program % HEADS, program // HEADS % BLOCKS, program // (HEADS * BLOCKS)
    column = tl.arange(0, WIDTH)
    keys = block * BLOCK + tl.arange(0, BLOCK)
    real_k = (keys < N)[:, None] & (column < D)[None, :]
    SIDE: tl.constexpr = BLOCK * BLOCKS
    own = partial + (part * HEADS + head).to(tl.int64) * SIDE * SIDE + keys[None, :]
    bias_sum = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for number in range(part, total, parts):
        place = tl.cast(number, tl.int64)
        view, window = place // windows, place % windows
        row_k = tl.load(index + window * N + keys, mask=keys < N, other=0)
        offset_k = (view * rows + row_k)[:, None] * (3 * HEADS * D) + head * D + column[None, :]
        k = tl.load(qkv + offset_k + HEADS * D, mask=real_k, other=0.0)
        v = tl.load(qkv + offset_k + 2 * HEADS * D, mask=real_k, other=0.0)
        d_k = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
        d_v = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
        for other in range(BLOCKS):
            queries = other * BLOCK + tl.arange(0, BLOCK)
            row_q = tl.load(index + window * N + queries, mask=queries < N, other=0)
            real_q = (queries < N)[:, None] & (column < D)[None, :]
            offset_q = (view * rows + row_q)[:, None] * (3 * HEADS * D) + head * D + column[None, :]
            q = tl.load(qkv + offset_q, mask=real_q, other=0.0)
            at = (view * tokens + row_q)[:, None] * (HEADS * D) + head * D + column[None, :]
            real_out = real_q & (row_q < tokens)[:, None]
            given = tl.load(d_out + at, mask=real_out, other=0.0)
            logits = _score(q, k, bias, regions, window, head, queries, keys, scale, N, BLOCK * BLOCKS, SHIFTED, PRECISION)
            known = tl.load(sums + (place * HEADS + head) * N + queries, mask=queries < N, other=0.0)
            p = tl.exp(logits - known[:, None])
            d_v += tl.dot(tl.trans(p.to(given.dtype)), given, input_precision=PRECISION)
            d_p = tl.dot(given, tl.trans(v), input_precision=PRECISION)
            if BLOCKS == 1:
                d_logits = p * (d_p - tl.sum(p * d_p, axis=1)[:, None])
                bias_sum += d_logits
            else:
                attended = tl.load(out + at, mask=real_out, other=0.0).to(tl.float32)
                d_logits = p * (d_p - tl.sum(given.to(tl.float32) * attended, axis=1)[:, None])
                # Too large for registers. Only this program reads and writes these sums, window after window: the order is fixed.
                tl.store(own + queries[:, None] * SIDE, tl.load(own + queries[:, None] * SIDE) + d_logits)
                tl.debug_barrier()
            d_logits = d_logits.to(q.dtype)
            d_k += tl.dot(tl.trans(d_logits), q, input_precision=PRECISION) * scale
            if BLOCKS == 1:
                d_q = tl.dot(d_logits, k, input_precision=PRECISION) * scale
                tl.store(d_qkv + offset_q, d_q.to(d_qkv.dtype.element_ty), mask=real_q)
        tl.store(d_qkv + offset_k + HEADS * D, d_k.to(d_qkv.dtype.element_ty), mask=real_k)
        tl.store(d_qkv + offset_k + 2 * HEADS * D, d_v.to(d_qkv.dtype.element_ty), mask=real_k)
    if BLOCKS == 1:
        tl.store(own + keys[:, None] * SIDE, bias_sum)


@triton.jit(do_not_specialize=SIZES_AT_RUN_TIME)
@no_type_check
def attend_backward_queries(
    qkv, bias, index, regions, out, sums, d_out, d_qkv, scale, rows, tokens, windows,
    HEADS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one head and block of queries, over all blocks of keys."""
    program = tl.program_id(0)
    head, block = program % HEADS, program // HEADS % BLOCKS
    place = (program // (HEADS * BLOCKS)).to(tl.int64)
    view, window = place // windows, place % windows
    column = tl.arange(0, WIDTH)
    queries = block * BLOCK + tl.arange(0, BLOCK)
    row_q = tl.load(index + window * N + queries, mask=queries < N, other=0)
    real_q = (queries < N)[:, None] & (column < D)[None, :]
    offset_q = (view * rows + row_q)[:, None] * (3 * HEADS * D) + head * D + column[None, :]
    q = tl.load(qkv + offset_q, mask=real_q, other=0.0)
    at = (view * tokens + row_q)[:, None] * (HEADS * D) + head * D + column[None, :]
    real_out = real_q & (row_q < tokens)[:, None]
    given = tl.load(d_out + at, mask=real_out, other=0.0)
    attended = tl.load(out + at, mask=real_out, other=0.0).to(tl.float32)
    mean = tl.sum(given.to(tl.float32) * attended, axis=1)
    known = tl.load(sums + (place * HEADS + head) * N + queries, mask=queries < N, other=0.0)
    d_q = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    for number in range(BLOCKS):
        keys = number * BLOCK + tl.arange(0, BLOCK)
        row_k = tl.load(index + window * N + keys, mask=keys < N, other=0)
        at_k = qkv + (view * rows + row_k)[:, None] * (3 * HEADS * D) + head * D + column[None, :]
        real_k = (keys < N)[:, None] & (column < D)[None, :]
        k = tl.load(at_k + HEADS * D, mask=real_k, other=0.0)
        v = tl.load(at_k + 2 * HEADS * D, mask=real_k, other=0.0)
        p = tl.exp(
            _score(q, k, bias, regions, window, head, queries, keys, scale, N, BLOCK * BLOCKS, SHIFTED, PRECISION) - known[:, None]
        )
        d_logits = p * (tl.dot(given, tl.trans(v), input_precision=PRECISION) - mean[:, None])
        d_q += tl.dot(d_logits.to(k.dtype), k, input_precision=PRECISION)
    tl.store(d_qkv + offset_q, (d_q * scale).to(d_qkv.dtype.element_ty), mask=real_q)
