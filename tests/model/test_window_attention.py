"""Proves shifted-window attention against its definition, token by token in float64: padding, wrap-around, windows cut short.

The oracle knows no windows as tensors: for each query on the padded grid it lists the keys it may see.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dagman.model.window_attention import WindowAttention, attend_windows, attend_windows_in_place, attention_probabilities
from dagman.model.windows import plan_windows

CPU = torch.device("cpu")
GRIDS = [(8, 5, 4), (5, 3, 6), (2, 2, 2), (1, 5, 1), (1, 1, 1)]


@pytest.fixture(params=[(2, 4, 0), (2, 4, 2), (3, 3, 1)], ids=lambda p: f"heads{p[0]}-window{p[1]}-shift{p[2]}")
def layer_and_shift(request: pytest.FixtureRequest) -> tuple[WindowAttention, int]:
    heads, side, shift = request.param
    layer = WindowAttention(6, heads, side).double()
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return layer, shift


def attend_windows_by_loop(layer: WindowAttention, x: Tensor, grid: tuple[int, int, int], shift: int) -> Tensor:
    """x (L C) of one view: every query on the grid padded to whole windows, its keys found one by one."""
    window = [min(g, layer.side) for g in grid]
    shifts = [0 if g <= layer.side else shift for g in grid]
    padded = [math.ceil(g / w) * w for g, w in zip(grid, window, strict=True)]
    places = list(itertools.product(*(range(p) for p in padded)))
    tokens = {p: x[(p[0] * grid[1] + p[1]) * grid[2] + p[2]] for p in places if all(a < g for a, g in zip(p, grid, strict=True))}
    # Padding is a token of zeros, so its key and value are the biases of the projection.
    qkv = {p: layer.qkv(tokens.get(p, torch.zeros_like(x[0]))).unflatten(0, (3, layer.heads, -1)) for p in places}
    rolled = {p: tuple((a - s) % side for a, s, side in zip(p, shifts, padded, strict=True)) for p in places}

    def see_each_other(p: tuple[int, ...], q: tuple[int, ...]) -> bool:
        same_window = all(a // w == b // w for a, b, w in zip(rolled[p], rolled[q], window, strict=True))
        same_end = all((a < s) == (b < s) for a, b, s in zip(p, q, shifts, strict=True))
        return same_window and same_end

    outputs = []
    for p in tokens:
        keys = [q for q in places if see_each_other(p, q)]
        logits = []
        for q in keys:
            a, b, c = (i - j + layer.side - 1 for i, j in zip(rolled[p], rolled[q], strict=True))
            row = (a * (2 * layer.side - 1) + b) * (2 * layer.side - 1) + c
            logits.append((qkv[p][0] * qkv[q][1]).sum(-1) / math.sqrt(qkv[p].shape[-1]) + layer.bias_table[row])
        share = torch.softmax(torch.stack(logits), dim=0)
        attended = (share[..., None] * torch.stack([qkv[q][2] for q in keys])).sum(0)
        outputs.append(layer.proj(attended.flatten()))
    return torch.stack(outputs)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid)))
def test_attention_equals_its_definition_token_by_token(layer_and_shift: tuple[WindowAttention, int], grid: tuple[int, int, int]):
    layer, shift = layer_and_shift
    x = torch.randn(2, math.prod(grid), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        got = layer(x, plan_windows(grid, layer.side, shift, CPU))
        wanted = torch.stack([attend_windows_by_loop(layer, view, grid, shift) for view in x])
    assert (got - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masking_in_place_gives_the_bits_and_gradients_of_the_reference(dtype: torch.dtype, shift: int):
    plan = plan_windows((8, 6, 8), 4, shift, CPU)
    draws = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(16, 2, 64, 3, generator=draws).to(dtype).requires_grad_() for _ in range(3))
    bias = torch.randn(2, 64, 64, generator=draws).to(dtype).requires_grad_()
    results = []
    for attend in (attend_windows, attend_windows_in_place):
        attended = attend(q, k, v, bias, plan.masked, 0.5)
        results.append([attended, *torch.autograd.grad(attended.square().sum(), (q, k, v, bias))])
    for wanted, got in zip(*results, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, wanted)


def test_probabilities_are_float32_under_autocast_and_sum_to_one():
    plan = plan_windows((8, 8, 8), 4, 2, CPU)
    layer = WindowAttention(12, 2, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        probabilities = layer.probabilities(torch.randn(1, 512, 12), plan)
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-5)
    assert not probabilities.transpose(0, 1)[:, plan.masked].any()


def test_a_bfloat16_logit_is_not_rounded_again_by_the_softmax():
    q = torch.randn(1, 1, 64, 8, generator=torch.Generator().manual_seed(6)).bfloat16()
    logits = (q @ q.transpose(-2, -1)).double()
    probabilities = attention_probabilities(q, q, torch.zeros(1, 64, 64), None, 1.0)
    assert (probabilities - torch.softmax(logits, -1)).abs().max() < 1e-6
