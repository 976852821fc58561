"""Proves the compiled Triton kernels on a CUDA device: float32 to 1e-4, bfloat16 within the reference's error, the same bits twice.

Skipped where there is none, and where another test has switched Triton to its interpreter: `pytest tests/gpu` alone.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from dagman.model.window_attention import WindowAttention
from dagman.model.windows import plan_windows

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="needs a CUDA device and compiled kernels"
)

CASES = [((24, 24, 24), 4, 2, 4, 48), ((6, 6, 6), 4, 2, 16, 384), ((13, 9, 7), 6, 3, 4, 96), ((16, 15, 14), 7, 3, 2, 64)]


def attend(kernel: bool, case: tuple[tuple[int, int, int], int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """The output and every gradient, by kernel or by reference, of the same weights and tokens."""
    from dagman.model.kernels.window_attention import attend_tokens

    grid, side, shift, heads, dim = case
    torch.manual_seed(0)
    layer = WindowAttention(dim, heads, side).cuda().to(dtype)
    layer.kernel = attend_tokens if kernel else None
    x = torch.randn(2, math.prod(grid), dim, device="cuda").to(dtype).requires_grad_()
    out = layer(x, plan_windows(grid, side, shift, x.device))
    return [out, *torch.autograd.grad(out, [x, *layer.parameters()], torch.ones_like(out))]


def differ(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_window_attention_equals_the_reference_and_itself(case: tuple[tuple[int, int, int], int, int, int, int]):
    exact = attend(False, case, torch.float32)
    # Keys' biases have no gradient but rounding, so tensors are compared together where they are exact.
    got, wanted = (torch.cat([part.detach().flatten() for part in parts]) for parts in (attend(True, case, torch.float32), exact))
    assert differ(got, wanted) < 1e-4
    ours, reference = attend(True, case, torch.bfloat16), attend(False, case, torch.bfloat16)
    assert differ(ours[0], exact[0]) < 1.1 * differ(reference[0], exact[0])
    assert all(torch.equal(a, b) for a, b in zip(ours, attend(True, case, torch.bfloat16), strict=True))
