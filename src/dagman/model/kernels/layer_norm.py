"""LayerNorm fused with the residual sum before it and the cast after it: Triton programs, forward and two-stage backward.

The reference reads the branch and the shortcut, writes their sum, reads it again to normalise, and writes again to cast. Here
tokens are read once and written twice: the sum for the shortcut, and the normalised tokens in the precision of what follows.
Gradients of weight and bias are summed by a fixed number of programs, each over its own rows in order, and then over
the programs in a fixed order. The operations are registered with torch, as those of `window_attention`.

Notation: R rows (tokens of all views), C channels, L tokens per view, B views.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from dagman.model.kernels import count_programs

VALUES = 4096
"""Values that a program of the forward pass holds at a time: as many rows as fit."""
BACKWARD_VALUES = 2048
"""The same of the backward pass, which holds more about each."""
PER_PROCESSOR = 12
"""Programs of the backward pass for each multiprocessor: whole waves where registers let it hold three, four or six at a time."""


def add_and_normalise(
    x: Float[Tensor, "B L C"],
    branch: Float[Tensor, "B L C"] | None,
    scale: Float[Tensor, "B"] | None,
    weight: Float[Tensor, "C"],
    bias: Float[Tensor, "C"],
    eps: float,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B L C"]]:
    """x + branch * scale, and its LayerNorm in `dtype` (x's own by default).

    branch: of a residual block; None: nothing is added, and the first result is x. scale: a factor for each view, as stochastic
    depth draws it; None: 1.
    """
    total, normed, _, _ = torch.ops.dagman.add_and_normalise(x, branch, scale, weight, bias, eps, dtype or x.dtype)
    return (x if branch is None else total), normed


@torch.library.custom_op(
    "dagman::add_and_normalise",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor? branch, Tensor? scale, Tensor weight, Tensor bias, float eps, ScalarType dtype)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _add_and_normalise(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum (empty without a branch), its LayerNorm, and each row's mean and inverse standard deviation."""
    (B, L, C), x = x.shape, x.contiguous()
    rows, sizes = B * L, _size_blocks(C, VALUES)
    total, normed, mean, rstd = _allocate(x, branch, dtype)
    given = x if branch is None else branch.contiguous()
    factors = mean if scale is None else scale.float().contiguous()
    with torch.cuda.device_of(x):
        normalise_forward[(triton.cdiv(rows, sizes["ROWS"]),)](
            x, given, factors, weight, bias, total, normed, mean, rstd, rows, L, eps,
            ADD=branch is not None, SCALED=scale is not None, **sizes,
        )  # fmt: skip
    return total, normed, mean, rstd


@_add_and_normalise.register_fake
def _(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _allocate(x, branch, dtype)


@torch.library.custom_op(
    "dagman::add_and_normalise_backward",
    mutates_args=(),
    schema=(
        "(Tensor? d_total, Tensor d_normed, Tensor total, Tensor mean, Tensor rstd, Tensor weight, Tensor? scale,"
        " ScalarType? branch) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _add_and_normalise_backward(
    d_total: Tensor | None,
    d_normed: Tensor,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    branch: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the branch (of that precision; empty without one), of the weight and of the bias."""
    (B, L, C), total, d_normed = total.shape, total.contiguous(), d_normed.contiguous()
    rows, sizes = B * L, _size_blocks(C, BACKWARD_VALUES)
    programs = max(1, min(count_programs(total.device, PER_PROCESSOR), triton.cdiv(rows, sizes["ROWS"])))
    d_x, d_branch = torch.empty_like(total), _allocate_branch(total, branch)
    partial = torch.empty(2, programs, C, dtype=torch.float32, device=total.device)
    with torch.cuda.device_of(total):
        normalise_backward[(programs,)](
            total, mean, rstd, weight, d_normed if d_total is None else d_total.contiguous(), d_normed,
            mean if scale is None else scale.float().contiguous(), d_x, d_branch, partial, rows, L, programs,
            PASSED=d_total is not None, ADD=branch is not None, SCALED=scale is not None, **sizes,
        )  # fmt: skip
    d_weight, d_bias = partial.sum(1).to(weight.dtype).unbind()
    return d_x, d_branch, d_weight.clone(), d_bias.clone()


@_add_and_normalise_backward.register_fake
def _(
    d_total: Tensor | None,
    d_normed: Tensor,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    branch: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_weight, d_bias = (weight.new_empty(weight.shape) for _ in range(2))
    return total.new_empty(total.shape), _allocate_branch(total, branch), d_weight, d_bias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, branch, scale, weight, _, _, _ = inputs
    total, normed, mean, rstd = output
    ctx.save_for_backward(x if branch is None else total, mean, rstd, weight, scale)
    ctx.branch, ctx.dtype = None if branch is None else branch.dtype, normed.dtype
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_total: Tensor | None, d_normed: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    total, mean, rstd, weight, scale = ctx.saved_tensors
    d_normed = total.new_zeros(total.shape, dtype=ctx.dtype) if d_normed is None else d_normed
    d_total = None if ctx.branch is None else d_total
    backward = torch.ops.dagman.add_and_normalise_backward
    d_x, d_branch, d_weight, d_bias = backward(d_total, d_normed, total, mean, rstd, weight, scale, ctx.branch)
    return d_x, None if ctx.branch is None else d_branch, None, d_weight, d_bias, None, None


_add_and_normalise.register_autograd(_differentiate, setup_context=_keep)


def _allocate(x: Tensor, branch: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x.new_empty(0 if branch is None else x.shape)
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return total, x.new_empty(x.shape, dtype=dtype), mean, rstd


def _allocate_branch(total: Tensor, branch: torch.dtype | None) -> Tensor:
    return total.new_empty(0) if branch is None else total.new_empty(total.shape, dtype=branch)


def _size_blocks(channels: int, values: int) -> dict[str, int]:
    width = triton.next_power_of_2(channels)
    return {"CHANNELS": channels, "ROWS": max(1, values // width), "WIDTH": width, "num_warps": 4}


@triton.jit(do_not_specialize=["rows", "tokens"])
@no_type_check
def normalise_forward(
    x, branch, factors, weight, bias, total, normed, mean, rstd, rows, tokens, eps,
    ADD: tl.constexpr, SCALED: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The sum, its LayerNorm, and the mean and inverse deviation of ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    at = row[:, None] * CHANNELS + column[None, :]
    real = (row < rows)[:, None] & (column < CHANNELS)[None, :]
    values = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(branch + at, mask=real, other=0.0).to(tl.float32)
        if SCALED:
            added *= tl.load(factors + row // tokens, mask=row < rows, other=0.0)[:, None]
        values += added
        tl.store(total + at, values.to(total.dtype.element_ty), mask=real)
    middle = tl.sum(values, axis=1) / CHANNELS
    centred = tl.where(real, values - middle[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, axis=1) / CHANNELS + eps)
    gain = tl.load(weight + column, mask=column < CHANNELS, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < CHANNELS, other=0.0).to(tl.float32)
    result = centred * inverse[:, None] * gain[None, :] + shift[None, :]
    tl.store(normed + at, result.to(normed.dtype.element_ty), mask=real)
    tl.store(mean + row, middle, mask=row < rows)
    tl.store(rstd + row, inverse, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "tokens", "programs"])
@no_type_check
def normalise_backward(
    total, mean, rstd, weight, d_total, d_normed, factors, d_x, d_branch, partial, rows, tokens, programs,
    PASSED: tl.constexpr, ADD: tl.constexpr, SCALED: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of every `programs`-th block of rows, and the sums of weight and bias over them."""
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    gain = tl.load(weight + column, mask=column < CHANNELS, other=0.0).to(tl.float32)
    d_weight = tl.zeros((WIDTH,), dtype=tl.float32)
    d_bias = tl.zeros((WIDTH,), dtype=tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)
        at = row[:, None] * CHANNELS + column[None, :]
        real = (row < rows)[:, None] & (column < CHANNELS)[None, :]
        values = tl.load(total + at, mask=real, other=0.0).to(tl.float32)
        middle = tl.load(mean + row, mask=row < rows, other=0.0)
        inverse = tl.load(rstd + row, mask=row < rows, other=0.0)
        given = tl.load(d_normed + at, mask=real, other=0.0).to(tl.float32)
        unit = tl.where(real, (values - middle[:, None]) * inverse[:, None], 0.0)
        d_weight += tl.sum(given * unit, axis=0)
        d_bias += tl.sum(given, axis=0)
        scaled = given * gain[None, :]
        along = tl.sum(scaled * unit, axis=1) / CHANNELS
        evenly = tl.sum(scaled, axis=1) / CHANNELS
        gradient = (scaled - evenly[:, None] - unit * along[:, None]) * inverse[:, None]
        if PASSED:
            gradient += tl.load(d_total + at, mask=real, other=0.0).to(tl.float32)
        if ADD:
            share = gradient
            if SCALED:
                share *= tl.load(factors + row // tokens, mask=row < rows, other=0.0)[:, None]
            tl.store(d_branch + at, share.to(d_branch.dtype.element_ty), mask=real)
        tl.store(d_x + at, gradient.to(d_x.dtype.element_ty), mask=real)
    tl.store(partial + program * CHANNELS + column, d_weight, mask=column < CHANNELS)
    tl.store(partial + (programs + program) * CHANNELS + column, d_bias, mask=column < CHANNELS)
