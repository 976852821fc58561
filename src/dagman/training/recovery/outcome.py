"""What a step gave, on its way from the device to the host; and what keeps a step that is not finite from the weights meanwhile.

With `train.read_after=1` the host reads a step's losses while the device computes the next one. That one must not learn from what
a broken step has spoilt, so the device itself decides: from a step that is not finite on, the gate leaves student, optimiser and
teacher as they are, and the host finds them as they were before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dagman.method.centering import Temperature
from dagman.training.accumulation import StepLosses

TargetsState = tuple[Mapping[str, Tensor], Mapping[str, Temperature | None]]


class Outcome:
    """Losses, norm and temperatures of a step (from 0), sent to the host and not waited for.

    Args:
        step: The step.
        before: State of the targets before it.
        losses: As they are on the device.
        norm: Of the gradient.
        rates: What the host knows of the step by itself (`lr`, `momentum`).
    """

    def __init__(self, step: int, before: TargetsState, losses: StepLosses, norm: Tensor, rates: Mapping[str, float]) -> None:
        self.step, self.before, self.rates = step, before, rates
        self.found = {"total": losses.total, **losses.parts, "grad_norm": norm}
        self.temperatures = losses.temperatures
        solved = [value for value in losses.temperatures.values() if isinstance(value, Tensor)]
        sent = torch.stack([value.detach().double() for value in (*self.found.values(), *solved)])
        self.values = sent.to("cpu", non_blocking=True)
        self.arrival = torch.cuda.Event() if sent.device.type == "cuda" else None
        if self.arrival is not None:
            self.arrival.record()

    def read(self) -> dict[str, Any] | None:
        """The row for `metrics.jsonl`, once it has arrived; None where the loss or the norm of the gradient is not finite."""
        if self.arrival is not None:
            self.arrival.synchronize()
        values = self.values.tolist()
        found, solved = dict(zip(self.found, values, strict=False)), iter(values[len(self.found) :])
        norm = found.pop("grad_norm")
        if not (math.isfinite(found["total"]) and math.isfinite(norm)):
            return None
        temperatures = {
            f"tau_{name}": next(solved) if isinstance(value, Tensor) else value for name, value in self.temperatures.items()
        }
        return {"step": self.step + 1, **found, **self.rates, **temperatures, "grad_norm": norm}


class Gate:
    """Shut, on the device, from the first step on that is not finite, until it is opened again."""

    def __init__(self, device: torch.device) -> None:
        self.shut = torch.zeros((), device=device)
        """1 where it is shut; what fused AdamW calls `found_inf`."""

    def see(self, *values: Tensor) -> None:
        """Shut it where one of these is not finite."""
        finite = torch.isfinite(torch.stack([value.detach().float() for value in values])).all()
        self.shut.copy_(torch.maximum(self.shut, 1 - finite.float()))

    def open(self) -> None:
        """Let steps through again."""
        self.shut.zero_()
