"""State of the targets, carried from step to step: a centre, a temperature and a queue per projector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dagman.method.centering import (
    TEMPERATURE_FLOOR,
    Temperature,
    center_and_sharpen,
    sinkhorn_knopp,
    solve_temperature,
    solve_temperature_on_device,
    update_center,
)
from dagman.method.peers import ALONE, Peers

PROJECTORS = ("ampd", "aitd", "gitd")
SMOOTHING = 0.9
"""EMA momentum of log tau_t if the temperature is solved for an entropy. [ours]"""


@dataclass(frozen=True, kw_only=True)
class TargetRules:
    """How logits are turned into targets (METHOD, Losses); fixed during a run.

    Attributes:
        centering: "mean" (EMA centre) or "sinkhorn".
        target_entropy: Mean H(P_t) / ln K for which tau_t is solved; None takes tau_t from the schedule.
        center_momentum: EMA momentum of the centre.
        queue: Number of rows from earlier steps that the image projectors' Sinkhorn iterations and temperature include [SwAV]; with
            only a handful of views, prototypes would be assigned at random. Each row is stored minus the mean of its step, because
            the component that all views share drifts between steps, and Sinkhorn would separate steps instead of views.
    """

    centering: str = "mean"
    target_entropy: float | None = None
    center_momentum: float = 0.9
    queue: int = 0


class Targets:
    """Centres, temperatures and queues. `update` turns the logits of a whole step into P_t, and updates the state.

    on_device: Solve temperatures on the device of the logits, as tensors, so that no step waits for the device.
    """

    def __init__(
        self,
        rules: TargetRules,
        prototypes: int,
        projectors: tuple[str, ...] = PROJECTORS,
        device: torch.device | str = "cpu",
        *,
        on_device: bool = False,
    ) -> None:
        self.rules, self.on_device = rules, on_device
        self.centers = {name: torch.zeros(prototypes, device=device) for name in projectors}
        self.queues = {name: torch.zeros(0, prototypes, device=device) for name in projectors if name != "ampd"}
        self.log_temperatures: dict[str, Temperature | None] = dict.fromkeys(projectors)

    def update(self, name: str, logits: Tensor, scheduled: float, peers: Peers = ALONE) -> tuple[Tensor, Temperature]:
        """Compute P_t (R x K) of a projector from all rows of a step, and the tau_t used; then update the state.

        `scheduled` is the schedule's tau_t, used unless the rules solve it for an entropy. If `peers` share the step, `logits` and
        P_t are the rows of this process, and the state is updated identically in all processes.
        """
        if peers.size > 1 and self._uses_queue(name):
            # A queue holds all views of a step in order, so all rows are gathered; there is only one per view.
            probabilities, temperature = self.update(name, peers.gather(logits.float()), scheduled)
            return probabilities[peers.rank * len(logits) :][: len(logits)], temperature
        temperature = self._find_temperature(name, logits, scheduled, peers)
        probabilities = self.compute(name, logits, temperature, peers)
        if self.rules.target_entropy is not None:
            self.log_temperatures[name] = temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)
        self.centers[name] = update_center(self.centers[name], logits, self.rules.center_momentum, peers)
        if self._uses_queue(name):
            self.queues[name] = self._with_queue(name, logits)[-self.rules.queue :]
        return probabilities, temperature

    def compute(self, name: str, logits: Tensor, temperature: Temperature, peers: Peers = ALONE) -> Tensor:
        """Compute P_t (R x K) at a temperature, without updating the state."""
        if self.rules.centering == "sinkhorn":
            rows = self._with_queue(name, logits)
            return sinkhorn_knopp(rows, temperature, peers=peers)[len(rows) - len(logits) :]
        return center_and_sharpen(logits, self.centers[name], temperature)

    def temperature(self, name: str, logits: Tensor, scheduled: float) -> float:
        """Return the tau_t that was last used; before the first step, the one for these logits (R x K)."""
        last = self.log_temperatures[name]
        return float(self._find_temperature(name, logits, scheduled)) if last is None else math.exp(float(last))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Temperature | None]]:
        """Return tensors and log temperatures for a checkpoint."""
        tensors = {f"center.{name}": value for name, value in self.centers.items()}
        tensors |= {f"queue.{name}": value for name, value in self.queues.items()}
        return tensors, dict(self.log_temperatures)

    def restore(self, tensors: Mapping[str, Tensor], log_temperatures: Mapping[str, Temperature | None]) -> None:
        """Restore the state from a checkpoint."""
        self.centers = {name: tensors[f"center.{name}"].to(old.device) for name, old in self.centers.items()}
        self.queues = {name: tensors[f"queue.{name}"].to(old.device) for name, old in self.queues.items()}
        self.log_temperatures = dict(log_temperatures)

    def _uses_queue(self, name: str) -> bool:
        return name in self.queues and self.rules.queue > 0

    def _with_queue(self, name: str, logits: Tensor) -> Tensor:
        if not self._uses_queue(name):
            return logits.float()
        return torch.cat([self.queues[name], logits.float() - logits.float().mean(dim=0)])

    def _find_temperature(self, name: str, logits: Tensor, scheduled: float, peers: Peers = ALONE) -> Temperature:
        if self.rules.target_entropy is None:
            return scheduled
        rows, before = self._with_queue(name, logits), self.log_temperatures[name]
        if self.on_device:
            found = solve_temperature_on_device(rows, self.rules.target_entropy, peers).log()
            mixed = found if before is None else SMOOTHING * before + (1 - SMOOTHING) * found
            return mixed.exp().clamp_min(TEMPERATURE_FLOOR)
        solved = math.log(solve_temperature(rows, self.rules.target_entropy, peers))
        smoothed = solved if before is None else SMOOTHING * float(before) + (1 - SMOOTHING) * solved
        return max(TEMPERATURE_FLOOR, math.exp(smoothed))
