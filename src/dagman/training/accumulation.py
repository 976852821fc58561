"""Computes the gradients of one optimiser step over micro-batches, and over the processes that share the step.

The teacher processes all micro-batches first, so that centres, Sinkhorn-Knopp and queues see the whole step. Then each micro-batch
passes through the student and adds its share of the gradient. If several processes share the step, each uses its own views, and
gradients are summed over the processes once, during the last backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dagman.method.centering import Temperature
from dagman.method.networks import Network
from dagman.method.peers import ALONE, Peers
from dagman.method.step import Method, ViewPair, student_losses, teacher_forward
from dagman.method.targets import Targets


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """The losses of a step, detached: the weighted sum, its parts by name, and the tau_t used."""

    total: Tensor
    parts: dict[str, Tensor]
    temperatures: dict[str, Temperature]


def accumulate_gradients(
    student: Network | DistributedDataParallel,
    teacher: Network | None,
    micro_batches: Sequence[ViewPair],
    method: Method,
    targets: Targets,
    scheduled_temperature: float,
    peers: Peers = ALONE,
    on_part: Callable[[int, int], None] | None = None,
) -> StepLosses:
    """Compute the losses of one step, averaged over its pairs, and add their gradients to the student; updates `targets`.

    The result is the same, up to rounding, however the pairs are divided into micro-batches and among `peers`.

    on_part: Called with the numbers of finished and of all parts: the teacher's pass over each micro-batch, then the student's.
    """
    notify, total_parts = on_part or (lambda done, of: None), 2 * len(micro_batches)
    outputs = []
    for pair in micro_batches:
        outputs.append(teacher_forward(teacher, pair, method))
        notify(len(outputs), total_parts)
    step_targets, temperatures = update_targets(targets, [o.projections for o in outputs], scheduled_temperature, peers)
    pairs = sum(len(pair.views) for pair in micro_batches) * peers.size
    sums: dict[str, Tensor] = {}
    for number, (pair, output, target) in enumerate(zip(micro_batches, outputs, step_targets, strict=True), 1):
        last = number == len(micro_batches)
        with student.no_sync() if isinstance(student, DistributedDataParallel) and not last else contextlib.nullcontext():
            losses = student_losses(student, pair, output.masked, target, method)
            total = torch.stack([method.weights[name] * value for name, value in losses.items()]).sum()
            parts = pairs / len(pair.views)
            # Outside autocast, which would repeat the products of float32 sections in bfloat16.
            with torch.autocast(total.device.type, enabled=False):
                (total / parts).backward()
        for name, value in {**losses, "total": total}.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / parts
        notify(len(outputs) + number, total_parts)
    if peers.size > 1:
        sums = dict(zip(sums, peers.sum(torch.stack(list(sums.values()))), strict=True))
    return StepLosses(total=sums.pop("total"), parts=sums, temperatures=temperatures)


def update_targets(
    targets: Targets, projections: Sequence[dict[str, Tensor]], scheduled_temperature: float, peers: Peers = ALONE
) -> tuple[list[dict[str, Tensor]], dict[str, Temperature]]:
    """Compute P_t of each micro-batch by loss, from the teacher's projections of the whole step, and return the tau_t used."""
    parts: list[dict[str, Tensor]] = [{} for _ in projections]
    temperatures: dict[str, Temperature] = {}
    for name in projections[0]:
        logits = torch.cat([p[name] for p in projections]).float()
        probabilities, temperatures[name] = targets.update(name, logits.flatten(0, -2), scheduled_temperature, peers)
        split = probabilities.view_as(logits).split([len(p[name]) for p in projections])
        for part, probability in zip(parts, split, strict=True):
            part[name] = probability
    return parts, temperatures
