"""What an exponential moving average remembers: how much of its first weights is left, and how old the rest is on average.

Short runs exported mostly random weights while the momentum was the same whatever their length (docs/experiments.md), so `auto`
solves the momenta for a stated average age. The schedule is the cosine of `dagman.method.schedules.teacher_momentum`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONG_START, LONG_END = 0.996, 1.0
"""Momentum of long runs [iBOT, SMIT]; taken as soon as its average age is below the share asked for."""
FADING = 2.0
"""The momentum starts where the average age would be the one asked for, divided by this. [ours]"""
LARGEST_SHARE = 0.05
"""Share of first weights in the teacher above which a run warns. [ours]"""
_HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a teacher holds after some steps: `first_weights`, the share of its first weights, and `age`, its average age in steps.

    The age of a student's weights is the number of steps taken since; the first weights are as old as the run.
    """

    first_weights: float
    age: float


def list_momenta(steps: int, start: float, end: float) -> NDArray[np.float64]:
    """The momentum of each of `steps` steps: half a cosine from `start` to `end`."""
    progress = np.arange(steps) / max(1, steps - 1)
    return end + (start - end) * 0.5 * (1.0 + np.cos(np.pi * progress))


def measure_memory(momenta: NDArray[np.float64]) -> Memory:
    """The memory of an average that was moved with these momenta, one a step."""
    steps = len(momenta)
    left = np.concatenate([np.cumprod(momenta[::-1])[::-1], [1.0]])  # share that survives all later steps
    age = float(((1 - momenta) * left[1:]) @ np.arange(steps - 1, -1, -1) + left[0] * steps)
    return Memory(first_weights=float(left[0]), age=age)


def solve_momentum(steps: int, age: float, start: float | None = None) -> tuple[float, float]:
    """Momentum at the start and at the end of a run whose teacher is `age` (a share of the steps) old on average.

    start: kept where it is given. Runs long enough get the paper's 0.996 to 1, whose share of the run shrinks with its length.
    """
    if start is None:
        start = min(LONG_START, max(0.0, 1.0 - FADING / (age * steps)))

    def is_younger(end: float) -> bool:
        return measure_memory(list_momenta(steps, start, end)).age <= age * steps

    if is_younger(LONG_END):
        return start, LONG_END
    low, high = start, LONG_END
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_younger(middle) else (low, middle)
    return round(start, 6), round(low, 6)
