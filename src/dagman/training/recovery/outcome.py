"""The result of a step on its way from the device to the host, and the gate that protects the weights until it has been read.

With `train.read_after=1` the host reads the losses of a step while the device computes the next one. If the first is not finite,
neither may change the weights, so the device itself decides: from that step on, the gate leaves student, optimiser and teacher
unchanged, and the host finds them as they were before it.
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
    """Losses, gradient norm and temperatures of a step (from 0), sent to the host without waiting for them.

    Args:
        step: The step.
        before: The state of the targets before the step.
        losses: The losses, on the device.
        norm: The gradient norm, on the device.
        rates: Values that the host already has (`lr`, `momentum`).
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
        """Wait for the values; returns the row for `metrics.jsonl`, or None if the loss or the gradient norm is not finite."""
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
    """A flag on the device that is shut by the first step that is not finite, until `open` is called."""

    def __init__(self, device: torch.device) -> None:
        self.shut = torch.zeros((), device=device)
        """1 if the gate is shut; fused AdamW calls it `found_inf`."""

    def see(self, *values: Tensor) -> None:
        """Shut the gate if one of these values is not finite."""
        finite = torch.isfinite(torch.stack([value.detach().float() for value in values])).all()
        self.shut.copy_(torch.maximum(self.shut, 1 - finite.float()))

    def open(self) -> None:
        """Let steps change the weights again."""
        self.shut.zero_()
