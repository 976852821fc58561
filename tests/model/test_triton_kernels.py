"""Proves the Triton kernels equal to their references, values and every gradient, under Triton's interpreter on the CPU."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import config
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the kernels are compiled here: tests/gpu has them", allow_module_level=True)
pytest.importorskip("triton")

from dagman.model.kernels.layer_norm import add_and_normalise
from dagman.model.kernels.window_attention import attend_tokens
from dagman.model.swin import SwinEncoder, SwinShape
from dagman.model.window_attention import WindowAttention
from dagman.model.windows import plan_windows

CPU = torch.device("cpu")


def _differ(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest relative error of norm over the pairs."""
    return max(
        float((a.detach() - b.detach()).float().norm() / b.detach().float().norm()) for a, b in zip(got, wanted, strict=True)
    )


def _attend_both_ways(
    grid: tuple[int, int, int], side: int, shift: int, heads: int, dim: int, dtype: torch.dtype, views: int = 2
) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    layer = WindowAttention(dim, heads, side)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    layer.to(dtype)
    plan = plan_windows(grid, side, shift, CPU)
    x = torch.randn(views, math.prod(grid), dim).to(dtype).requires_grad_()
    given = torch.randn(views, math.prod(grid), dim).to(dtype)
    results = []
    for kernel in (attend_tokens, None):
        layer.kernel = kernel
        out = layer(x, plan)
        results.append([out, *torch.autograd.grad(out, [x, *layer.parameters()], given)])
    return results[0], results[1]


@pytest.mark.parametrize(
    ("grid", "side", "shift", "heads", "dim"),
    [
        pytest.param((8, 8, 4), 4, 2, 2, 24, id="shifted, heads of 12 channels"),
        pytest.param((5, 6, 3), 4, 2, 1, 32, id="padded and shifted, heads of 32"),
        pytest.param((1, 4, 4), 4, 0, 2, 48, id="one window cut short, heads of 24"),
        pytest.param((7, 6, 6), 6, 3, 1, 16, id="6 tokens along a window"),
        pytest.param((7, 8, 7), 7, 3, 1, 16, id="7 tokens along a window"),
    ],
)
def test_window_attention_and_every_gradient_equal_the_reference(
    grid: tuple[int, int, int], side: int, shift: int, heads: int, dim: int
):
    # One view of the large windows, which take the interpreter long.
    got, wanted = _attend_both_ways(grid, side, shift, heads, dim, torch.float32, views=2 if side == 4 else 1)
    assert _differ(got, wanted) < 5e-6


def test_half_precision_attention_errs_no_more_than_the_reference_itself():
    # float16: Triton's interpreter multiplies the bits of bfloat16 as if they were integers. tests/gpu has bfloat16.
    got, wanted = _attend_both_ways((5, 6, 3), 4, 2, 2, 32, torch.float16)
    _, exact = _attend_both_ways((5, 6, 3), 4, 2, 2, 32, torch.float32)
    for ours, reference, true in zip(got, wanted, exact, strict=True):
        assert _differ([ours], [true]) < 1.1 * _differ([reference], [true])


@pytest.mark.parametrize("branch", ["none", "added", "scaled"])
@pytest.mark.parametrize("channels", [24, 50, 768])
def test_layer_norm_with_the_sum_before_it_equals_the_reference(channels: int, branch: str):
    torch.manual_seed(0)
    x, added = (torch.randn(2, 7, channels, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(channels, requires_grad=True) for _ in range(2))
    scale = torch.tensor([0.0, 1.25]) if branch == "scaled" else None
    given = torch.randn(2, 2, 7, channels)
    leaves = [x, weight, bias, *([] if branch == "none" else [added])]

    def measure(compute: Callable[[], tuple[Tensor, Tensor]]) -> list[Tensor]:
        total, normed = compute()
        return [total, normed, *torch.autograd.grad((total * given[0]).sum() + (normed * given[1]).sum(), leaves)]

    def refer() -> tuple[Tensor, Tensor]:
        factor = 1.0 if scale is None else scale[:, None, None]
        total = x if branch == "none" else x + added * factor
        return total, F.layer_norm(total, (channels,), weight, bias, 1e-5)

    got = measure(lambda: add_and_normalise(x, None if branch == "none" else added, scale, weight, bias, 1e-5))
    assert _differ(got, measure(refer)) < 1e-6


def test_inputs_without_views_or_with_gaps_in_memory_are_taken():
    plan = plan_windows((4, 4, 2), 4, 0, CPU)
    qkv, bias, padding = torch.randn(3, 32, 48), torch.randn(1, 32, 32, requires_grad=True), torch.zeros(48)
    with_gaps = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(attend_tokens(with_gaps, padding, bias, plan, 0.25), attend_tokens(qkv, padding, bias, plan, 0.25))
    none = attend_tokens(qkv[:0], padding, bias, plan, 0.25)
    assert none.shape == (0, 32, 16)
    assert not torch.autograd.grad(none.sum(), bias)[0].any()
    x, weight = torch.randn(24, 5, 2).transpose(0, 2), torch.ones(24, requires_grad=True)
    normed = add_and_normalise(x, x, None, weight, torch.zeros(24), 1e-5)[1]
    torch.testing.assert_close(normed, F.layer_norm(2 * x, (24,)))
    none = add_and_normalise(x[:0], None, None, weight, torch.zeros(24), 1e-5)[1]
    assert not torch.autograd.grad(none.sum(), weight)[0].any()


@pytest.mark.parametrize("added", [False, True])
def test_the_operations_are_registered_as_torch_expects(added: bool):
    ops = torch.ops.dagman
    plan = plan_windows((3, 4, 5), 4, 2 if added else 0, CPU)
    qkv, bias = torch.randn(1, 60 + plan.padding, 48, requires_grad=True), torch.randn(1, plan.places, plan.places)
    inputs = (qkv, bias.requires_grad_(), plan.rows, plan.regions)
    torch.library.opcheck(ops.attend_windows, (*inputs, 60, 0.25))
    x, branch, weight, shift = (torch.randn(*shape, requires_grad=True) for shape in ((2, 3, 24), (2, 3, 24), (24,), (24,)))
    given = (
        x,
        branch.detach().half().requires_grad_() if added else None,
        torch.rand(2) if added else None,
        weight,
        shift,
        1e-5,
        torch.float16,
    )
    torch.library.opcheck(ops.add_and_normalise, given)
    with torch.no_grad():
        attended, sums = ops.attend_windows(*inputs, 60, 0.25)
        torch.library.opcheck(ops.attend_windows_backward, (attended, *inputs, attended, sums, 0.25))
        total, normed, *moments = ops.add_and_normalise(*given)
        kept = (total, normed, total) if added else (None, normed, x)
        torch.library.opcheck(ops.add_and_normalise_backward, (*kept, *moments, weight, given[2], torch.float16 if added else None))


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated")
@torch._dynamo.config.patch(recompile_limit=64)
def test_an_encoder_by_kernels_is_one_graph_with_the_same_values():
    config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    shape = SwinShape(embed=12, depths=(2, 1), heads=(1, 1), drop_path=0.5)
    encoder = SwinEncoder(shape)
    encoder.use_kernels("triton")
    view, drop = torch.rand(2, 1, 12, 10, 8), torch.rand(shape.branches, 2)
    outcomes = []
    for encode in (encoder.encode, torch.compile(encoder.encode, fullgraph=True, dynamic=False, backend="aot_eager")):
        encoder.zero_grad()
        maps = encode(view, drop=drop).maps
        sum(x.square().sum() for x in maps).backward()
        outcomes.append(torch.cat([part.detach().flatten() for part in (*maps, *(p.grad for p in encoder.parameters()))]))
    config.update("jaxtyping_disable", False)
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-4, atol=1e-4)


def test_operations_of_attention_are_counted():
    plan = plan_windows((4, 4, 4), 4, 0, CPU)
    qkv, bias = torch.randn(2, 64, 3 * 24, requires_grad=True), torch.randn(2, 64, 64)
    with FlopCounterMode(display=False) as counter:
        attend_tokens(qkv, torch.zeros(72), bias, plan, 0.3).sum().backward()
    # Two products forward and five backward, of 64 x 64 pairs and 12 channels, in two windows of two heads each.
    assert counter.get_total_flops() == 7 * 2 * 64 * 64 * 12 * 2 * 2


def test_an_encoder_by_kernels_has_the_features_and_gradients_of_the_reference():
    shape = SwinShape(embed=12, depths=(2, 1, 1, 1), heads=(1, 1, 1, 2), drop_path=0.5)
    torch.manual_seed(0)
    encoder = SwinEncoder(shape)
    view, drop = torch.rand(2, 1, 16, 20, 12), torch.rand(shape.branches, 2)
    results = []
    for kernels in ("triton", "reference"):
        encoder.use_kernels(kernels)
        features = encoder(view, drop=drop)
        loss = sum(x.square().mean() for x in features)
        results.append([*features, *torch.autograd.grad(loss, list(encoder.parameters()))])
    # Keys' biases have a gradient of zero but for rounding, so tensors are compared together.
    got, wanted = (torch.cat([part.detach().flatten() for part in parts]) for parts in results)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5
