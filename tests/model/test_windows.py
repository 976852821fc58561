"""Proves that the gather puts every token where rolling, padding and cutting would, and brings it and its gradient back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dagman.model.windows import fit_window, gather_tokens, gather_windows, plan_windows, roll_into_tokens, roll_into_windows

CPU = torch.device("cpu")
sides = st.integers(1, 9)


@given(grid=st.tuples(sides, sides, sides), side=st.integers(1, 5), shifted=st.booleans())
def test_the_gather_equals_rolling_and_cutting_bit_for_bit(grid: tuple[int, int, int], side: int, shifted: bool):
    plan = plan_windows(grid, side, side // 2 if shifted else 0, CPU)
    x = torch.randn(2, math.prod(grid), 3, generator=torch.Generator().manual_seed(0))
    windows = gather_windows(x, plan)
    assert torch.equal(windows, roll_into_windows(x, plan))
    assert torch.equal(gather_tokens(windows, plan), x)
    assert torch.equal(roll_into_tokens(windows, plan), x)


@pytest.mark.parametrize("grid", [(8, 8, 8), (5, 6, 3)])
def test_gradients_equal_those_of_rolling_and_cutting(grid: tuple[int, int, int]):
    plan = plan_windows(grid, 4, 2, CPU)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, math.prod(grid), 3, generator=draws, requires_grad=True)
    weights = torch.randn(gather_windows(x, plan).shape, generator=draws)
    gradients = []
    for into, back in ((gather_windows, gather_tokens), (roll_into_windows, roll_into_tokens)):
        (gradient,) = torch.autograd.grad((back(into(x, plan) * weights, plan) ** 2).sum(), x)
        gradients.append(gradient)
    assert torch.equal(*gradients)


def test_padding_is_zero_and_marked_invalid():
    plan = plan_windows((5, 4, 4), 4, 0, CPU)
    windows = gather_windows(torch.ones(1, 80, 1), plan)
    assert plan.padded == (8, 4, 4)
    assert torch.equal(windows.squeeze(-1).bool(), plan.valid)
    assert int(plan.valid.sum()) == 80


def test_an_axis_no_longer_than_the_window_is_one_window_and_not_shifted():
    assert fit_window((3, 4, 9), side=4, shift=2) == ((3, 4, 4), (0, 0, 2))
    assert plan_windows((3, 4, 2), 4, 2, CPU).masked is None


def test_pairs_are_masked_where_they_lie_together_by_wrap_around_alone():
    masked = plan_windows((8, 1, 1), 4, 2, CPU).masked
    assert masked is not None
    # Rolled by two: window 0 holds tokens 2 3 4 5, window 1 holds 6 7 0 1.
    ends = torch.tensor([False, False, True, True])
    assert torch.equal(masked[0], torch.zeros(4, 4, dtype=torch.bool))
    assert torch.equal(masked[1], ends[:, None] != ends)


def test_a_plan_made_in_inference_mode_serves_in_training():
    vars(plan_windows)["cache_clear"]()
    with torch.inference_mode():
        plan = plan_windows((5, 5, 5), 4, 2, CPU)
    x = torch.randn(1, 125, 2, requires_grad=True)
    gather_tokens(gather_windows(x, plan_windows((5, 5, 5), 4, 2, CPU)), plan).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
