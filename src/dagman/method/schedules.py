"""Schedules (App. A; shapes as in iBOT and SMIT), as pure functions of the global step: they have no state to save or resume.

`step` runs from 0 to `steps` - 1.
"""

from __future__ import annotations

import math


def interpolate_cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine period, from `start` (progress 0) to `end` (progress 1)."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def learning_rate(step: int, steps: int, *, peak: float, end: float, warmup: float) -> float:
    """Linear warm-up from near 0 to `peak` over `warmup` (share of the steps), then a cosine to `end`."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return interpolate_cosine(peak, end, (step - rising) / max(1, steps - 1 - rising))


def teacher_momentum(step: int, steps: int, *, start: float, end: float) -> float:
    """EMA momentum m: a cosine from `start` to `end` over all steps."""
    return interpolate_cosine(start, end, step / max(1, steps - 1))


def teacher_temperature(step: int, steps: int, *, start: float, end: float, warmup: float) -> float:
    """Teacher temperature tau_t: linear from `start` to `end` over `warmup` (share of the steps), then constant."""
    rising = round(warmup * steps)
    return end if step >= rising else start + (end - start) * step / rising


def freeze_last_layer(step: int, steps: int, *, epochs: float, total_epochs: int = 800) -> bool:
    """Whether the projectors' last layers are frozen at this step: during the first `epochs` of 800 [iBOT], at least one step."""
    return epochs > 0 and step < max(1, round(epochs * steps / total_epochs))
