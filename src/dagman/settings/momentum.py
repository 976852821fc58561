"""Choose the momentum of the teacher's exponential moving average from the average age of its weights.

With the same momentum for all lengths of runs, short runs exported mostly initial random weights (docs/experiments.md). `auto`
therefore solves for the momenta that give a stated average age. The schedule is the cosine of
`dagman.method.schedules.teacher_momentum`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONG_START, LONG_END = 0.996, 1.0
"""Momentum of long runs [iBOT, SMIT]; used if the resulting average age is at most the target."""
FADING = 2.0
"""The initial momentum corresponds to the target average age divided by this factor. [ours]"""
LARGEST_SHARE = 0.05
"""Share of initial weights in the teacher above which a run warns. [ours]"""
_HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Composition of a moving average of weights at the end of a run.

    Attributes:
        first_weights: Share of the initial weights in the average.
        age: Average age in steps. Weights of the student age by 1 per step; the initial weights are as old as the run.
    """

    first_weights: float
    age: float


def list_momenta(steps: int, start: float, end: float) -> NDArray[np.float64]:
    """List the momentum at each of `steps` steps: half a cosine from `start` to `end`."""
    progress = np.arange(steps) / max(1, steps - 1)
    return end + (start - end) * 0.5 * (1.0 + np.cos(np.pi * progress))


def measure_memory(momenta: NDArray[np.float64]) -> Memory:
    """Compute the composition of a moving average that was updated with these momenta, one per step."""
    steps = len(momenta)
    left = np.concatenate([np.cumprod(momenta[::-1])[::-1], [1.0]])  # share that survives all later steps
    age = float(((1 - momenta) * left[1:]) @ np.arange(steps - 1, -1, -1) + left[0] * steps)
    return Memory(first_weights=float(left[0]), age=age)


def solve_momentum(steps: int, age: float, start: float | None = None) -> tuple[float, float]:
    """Find the initial and final momentum at which the teacher has a given average age at the end of the run.

    With the paper's 0.996 to 1 the average age, relative to the run, decreases with its length, so long runs use these values.

    Args:
        steps: Number of steps of the run.
        age: Target average age as a fraction of the steps.
        start: Initial momentum if it is fixed; None to choose it.

    Returns:
        The momentum at the start and at the end.
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
