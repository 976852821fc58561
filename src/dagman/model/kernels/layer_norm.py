"""LayerNorm fused with the residual sum before it and the cast after it: a Triton kernel, forward and two-stage backward.

The reference reads the branch and the shortcut, writes their sum, reads it again to normalise, and writes again to cast. Here
tokens are read once and written twice: the sum for the shortcut, and the normalised tokens in the precision of what follows.
Gradients of weight and bias are summed by a fixed number of programs, each over its own rows in order, then in a second pass.

Letters: R rows (tokens of all views), C channels, L tokens of a view, B views.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

MOST_PROGRAMS = 512
"""Programs of the backward pass, each with a partial sum of the weight's and the bias's gradient."""
ELEMENTS = 4096
"""Values that a program holds at a time: as many rows as fit."""


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
    total, normed = _AddAndNormalise.apply(x.contiguous(), branch, scale, weight, bias, eps, dtype or x.dtype)
    return (x if branch is None else total), normed


class _AddAndNormalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        scale: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        B, L, C = x.shape
        rows, block = B * L, _rows_at_once(C)
        total = x if branch is None else torch.empty_like(x)
        normed = torch.empty(x.shape, dtype=dtype, device=x.device)
        mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
        given = x if branch is None else branch.contiguous()
        factors = weight if scale is None else scale.float().contiguous()
        _normalise_forward[(triton.cdiv(rows, block),)](
            x, given, factors, weight, bias, total, normed, mean, rstd, rows, L, C, eps,
            ADD=branch is not None, SCALED=scale is not None, ROWS=block, WIDTH=triton.next_power_of_2(C),
        )  # fmt: skip
        ctx.save_for_backward(total, mean, rstd, weight, *(() if scale is None else (factors,)))
        ctx.added, ctx.branch_type = branch is not None, None if branch is None else branch.dtype
        if branch is None:
            ctx.mark_non_differentiable(total)
            return total.detach(), normed
        return total, normed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        total, mean, rstd, weight, *factors = ctx.saved_tensors
        B, L, C = total.shape
        rows, block = B * L, _rows_at_once(C)
        programs = min(MOST_PROGRAMS, triton.cdiv(rows, block))
        d_x = torch.empty_like(total)
        d_branch = torch.empty(total.shape, dtype=ctx.branch_type, device=total.device) if ctx.added else d_x
        partial = torch.empty(2, programs, C, dtype=torch.float32, device=total.device)
        d_normed = gradients[1].contiguous()
        d_total = gradients[0].contiguous() if ctx.added else d_normed
        _normalise_backward[(programs,)](
            total, mean, rstd, weight, d_total, d_normed, factors[0] if factors else mean, d_x, d_branch, partial,
            rows, L, C, programs,
            ADD=ctx.added, SCALED=bool(factors), ROWS=block, WIDTH=triton.next_power_of_2(C),
        )  # fmt: skip
        d_weight, d_bias = partial.sum(1)
        return d_x, d_branch if ctx.added else None, None, d_weight, d_bias, None, None


def _rows_at_once(channels: int) -> int:
    return max(1, ELEMENTS // triton.next_power_of_2(channels))


@triton.jit
@no_type_check
def _normalise_forward(
    x, branch, factors, weight, bias, total, normed, mean, rstd, rows, tokens, width, eps,
    ADD: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    at = row[:, None] * width + column[None, :]
    real = (row < rows)[:, None] & (column < width)[None, :]
    values = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(branch + at, mask=real, other=0.0).to(tl.float32)
        if SCALED:
            added *= tl.load(factors + row // tokens, mask=row < rows, other=0.0)[:, None]
        values += added
        tl.store(total + at, values.to(total.dtype.element_ty), mask=real)
    middle = tl.sum(values, axis=1) / width
    centred = tl.where(real, values - middle[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, axis=1) / width + eps)
    gain = tl.load(weight + column, mask=column < width, other=0.0)
    shift = tl.load(bias + column, mask=column < width, other=0.0)
    result = centred * inverse[:, None] * gain[None, :] + shift[None, :]
    tl.store(normed + at, result.to(normed.dtype.element_ty), mask=real)
    tl.store(mean + row, middle, mask=row < rows)
    tl.store(rstd + row, inverse, mask=row < rows)


@triton.jit
@no_type_check
def _normalise_backward(
    total, mean, rstd, weight, d_total, d_normed, factors, d_x, d_branch, partial, rows, tokens, width, programs,
    ADD: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    gain = tl.load(weight + column, mask=column < width, other=0.0)
    d_weight = tl.zeros((WIDTH,), dtype=tl.float32)
    d_bias = tl.zeros((WIDTH,), dtype=tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)
        at = row[:, None] * width + column[None, :]
        real = (row < rows)[:, None] & (column < width)[None, :]
        values = tl.load(total + at, mask=real, other=0.0).to(tl.float32)
        middle = tl.load(mean + row, mask=row < rows, other=0.0)
        inverse = tl.load(rstd + row, mask=row < rows, other=0.0)
        given = tl.load(d_normed + at, mask=real, other=0.0).to(tl.float32)
        unit = tl.where(real, (values - middle[:, None]) * inverse[:, None], 0.0)
        d_weight += tl.sum(given * unit, axis=0)
        d_bias += tl.sum(given, axis=0)
        scaled = given * gain[None, :]
        along = tl.sum(scaled * unit, axis=1) / width
        evenly = tl.sum(scaled, axis=1) / width
        gradient = (scaled - evenly[:, None] - unit * along[:, None]) * inverse[:, None]
        if ADD:
            gradient += tl.load(d_total + at, mask=real, other=0.0).to(tl.float32)
            share = gradient
            if SCALED:
                share *= tl.load(factors + row // tokens, mask=row < rows, other=0.0)[:, None]
            tl.store(d_branch + at, share.to(d_branch.dtype.element_ty), mask=real)
        tl.store(d_x + at, gradient.to(d_x.dtype.element_ty), mask=real)
    tl.store(partial + program * width + column, d_weight, mask=column < width)
    tl.store(partial + (programs + program) * width + column, d_bias, mask=column < width)
