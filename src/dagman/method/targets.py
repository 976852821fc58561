"""The state of the targets: one centre and one temperature a projector, carried from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dagman.method.centering import TEMPERATURE_FLOOR, balance, move_center, sharpen, solve_temperature

PROJECTORS = ("ampd", "aitd", "gitd")
SMOOTHING = 0.9
"""How much of log tau_t a step keeps when the temperature is solved. [ours]"""


@dataclass(frozen=True, kw_only=True)
class TargetRules:
    """How logits become targets (METHOD, Losses): fixed over a run.

    Attributes:
        centering: "mean" (EMA centre) or "sinkhorn".
        target_entropy: Mean H(P_t)/ln K that tau_t is solved for; None takes tau_t from the schedule.
        center_momentum: EMA momentum of the centre.
    """

    centering: str = "mean"
    target_entropy: float | None = None
    center_momentum: float = 0.9


class Targets:
    """Centres and temperatures of the three projectors; `sharpen` turns a whole step's logits into P_t and moves them on."""

    def __init__(self, rules: TargetRules, prototypes: int, projectors: tuple[str, ...] = PROJECTORS, device: torch.device | str = "cpu") -> None:
        self.rules = rules
        self.centers = {name: torch.zeros(prototypes, device=device) for name in projectors}
        self.log_temperatures: dict[str, float | None] = dict.fromkeys(projectors)

    def sharpen(self, name: str, logits: Tensor, scheduled: float) -> tuple[Tensor, float]:
        """P_t (R x K) of a projector from all rows of a step, and the tau_t used; then the state moves on.

        `scheduled` is tau_t of the schedule, taken unless the rules solve it for an entropy.
        """
        temperature = self.temperature(name, logits, scheduled)
        probabilities = self.apply(name, logits, temperature)
        if self.rules.target_entropy is not None:
            self.log_temperatures[name] = math.log(temperature)
        self.centers[name] = move_center(self.centers[name], logits, self.rules.center_momentum)
        return probabilities, temperature

    def temperature(self, name: str, logits: Tensor, scheduled: float) -> float:
        """tau_t for these logits, without moving the state."""
        if self.rules.target_entropy is None:
            return scheduled
        solved = math.log(solve_temperature(logits, self.rules.target_entropy))
        before = self.log_temperatures[name]
        smoothed = solved if before is None else SMOOTHING * before + (1 - SMOOTHING) * solved
        return max(TEMPERATURE_FLOOR, math.exp(smoothed))

    def apply(self, name: str, logits: Tensor, temperature: float) -> Tensor:
        """P_t (R x K) at a temperature, without moving the state."""
        if self.rules.centering == "sinkhorn":
            return balance(logits, temperature)
        return sharpen(logits, self.centers[name], temperature)

    def state(self) -> tuple[dict[str, Tensor], dict[str, float | None]]:
        """Centres and log temperatures, for a checkpoint."""
        return dict(self.centers), dict(self.log_temperatures)

    def restore(self, centers: dict[str, Tensor], log_temperatures: dict[str, float | None]) -> None:
        """Take over a checkpoint's state."""
        self.centers = {name: centers[name].to(center.device) for name, center in self.centers.items()}
        self.log_temperatures = dict(log_temperatures)
