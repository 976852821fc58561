"""A Swin's first block where whole windows are hidden: their tokens are all alike, so that one window a view stands for them.

Attention over tokens of one value gives that value's projection, whatever the weights of the pairs, and all that follows works on
each token by itself. So a window of nothing but the fill leaves the block as one vector, which differs between views by their
stochastic depth alone. Exact to rounding, gradients too.

Letters: B views, L tokens, W windows of a view, V visible windows of all views, n tokens of a window, C channels.
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
    """Tokens after a first block, which does not shift its windows.

    patches: Voxels of each patch token, which `project` makes a token of. hidden: True = the token is the fill, in whole windows;
    the grid's sides are multiples of the window's. visible: How many tokens are not hidden, of all views. fill: What hidden tokens
    hold. scales: The factors of residual branches still to come, of which the block takes two, B 1 1 each.
    """
    plan, views = plan_windows(grid, window, 0, patches.device), len(patches)
    places = plan.to_windows.view(-1, plan.places)
    shown = locate(~hidden[:, places[:, 0]].flatten(), visible // plan.places)
    view = shown // len(places)
    rows = (view[:, None] * hidden.shape[1] + places[shown % len(places)]).flatten()
    tokens = project(patches.flatten(0, 1).index_select(0, rows)).unflatten(0, (-1, plan.places))
    filled = fill.to(tokens.dtype).expand(views, plan.places, -1)
    # Each window goes through the block as a grid of its own, after them one of each view that holds the fill alone.
    owners = torch.cat([view, torch.arange(views, device=view.device)])
    factors = None if scales is None else iter([next(scales)[owners], next(scales)[owners]])
    passed = block(torch.cat([tokens, filled]), plan.window, factors)
    spread: Tensor = _Spread.apply(passed[: len(shown)].flatten(0, 1), passed[len(shown) :, 0], rows, hidden)
    return spread


class _Spread(torch.autograd.Function):
    """Rows to their places, and each view's one row to all its hidden places; the gradient of that one is a sum in fixed order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, alone: Tensor, index: Int[Tensor, " rows"], hidden: Bool[Tensor, "B L"]) -> Tensor:
        ctx.save_for_backward(index, hidden)
        spread = alone[:, None].expand(*hidden.shape, -1).contiguous()
        spread.flatten(0, 1).index_copy_(0, index, rows)
        return spread

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (index, hidden) = gradients, ctx.saved_tensors
        alone = hidden.to(gradient.dtype)[:, None] @ gradient
        return gradient.flatten(0, 1).index_select(0, index), alone[:, 0], None, None
