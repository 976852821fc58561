"""Compute the first block of a Swin once per view for all hidden windows, since their tokens are identical.

Attention over identical tokens gives the projection of their common value, regardless of the attention weights, and all further
operations act on each token separately. The tokens of a hidden window are therefore still identical after the block, and differ
between views only because of stochastic depth. Outputs and gradients are equal to those of the full computation up to rounding.

Notation: B views, L tokens, W windows of a view, V visible windows of all views, n tokens of a window, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dagman.model.windows import Triple, locate, plan_windows

Block = Callable[[Tensor, Triple, Iterator[Tensor] | None], Tensor]


def pass_first_block(
    patches: Float[Tensor, "B L P"],
    grid: Triple,
    hidden: Bool[Tensor, "B L"],
    visible: int,
    window: int,
    project: Callable[[Tensor], Tensor],
    fill: Float[Tensor, "C"],
    block: Block,
    scales: Iterator[Tensor] | None,
) -> Float[Tensor, "B L C"]:
    """Compute the tokens after the first block, whose windows are not shifted.

    Args:
        patches: Voxels of each patch token.
        grid: Grid of patch tokens; its sides must be multiples of the window's.
        hidden: True where a token is hidden; whole windows are either hidden or visible.
        visible: Number of visible tokens in all views.
        window: Side of a window in tokens.
        project: Projects patches to tokens.
        fill: Value of hidden tokens.
        block: The block, which takes tokens, their grid and the factors of its residual branches.
        scales: Iterator over the factors of the residual branches, B 1 1 each; the block takes two. None: no stochastic depth.
    """
    plan, views = plan_windows(grid, window, 0, patches.device), len(patches)
    places = plan.to_windows.view(-1, plan.places)
    shown = locate(~hidden[:, places[:, 0]].flatten(), visible // plan.places)
    view = shown // len(places)
    rows = (view[:, None] * hidden.shape[1] + places[shown % len(places)]).flatten()
    tokens = project(patches.flatten(0, 1).index_select(0, rows)).unflatten(0, (-1, plan.places))
    filled = fill.to(tokens.dtype).expand(views, plan.places, -1)
    # Each visible window passes through the block as a separate grid, followed by one window per view that holds only the fill.
    owners = torch.cat([view, torch.arange(views, device=view.device)])
    factors = None if scales is None else iter([next(scales)[owners], next(scales)[owners]])
    passed = block(torch.cat([tokens, filled]), plan.window, factors)
    spread: Tensor = _Spread.apply(passed[: len(shown)].flatten(0, 1), passed[len(shown) :, 0], rows, hidden)
    return spread


class _Spread(torch.autograd.Function):
    """Put visible tokens in their places, and a view's hidden token in all hidden places; its gradient is a sum in fixed order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, fill: Tensor, index: Int[Tensor, " rows"], hidden: Bool[Tensor, "B L"]) -> Tensor:
        ctx.save_for_backward(index, hidden)
        spread = fill[:, None].expand(*hidden.shape, -1).contiguous()
        spread.flatten(0, 1).index_copy_(0, index, rows)
        return spread

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (index, hidden) = gradients, ctx.saved_tensors
        of_fill = hidden.to(gradient.dtype)[:, None] @ gradient
        return gradient.flatten(0, 1).index_select(0, index), of_fill[:, 0], None, None
