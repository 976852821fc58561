"""Estimate the cost of a study: the operations of its pretrainings, and hours at a speed measured on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from dagman.method.step import ViewPair
from dagman.method.targets import Targets
from dagman.settings import Settings, load_settings, resolve_settings
from dagman.settings.tree import UNIT
from dagman.study.plan import Study
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients

BACKWARD = 2.0
"""Operations of a backward pass relative to a forward pass."""
TIMED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of the pretrainings of one size and method: `operations` per run, and `hours` for all `runs`."""

    size: str
    method: str
    runs: int
    steps: int
    views: int
    operations: float
    hours: float


def estimate_study(study: Study, device: str) -> list[Cost]:
    """Estimate the cost of every size and method, from the operations per view and the speed of `tiny` on `device`."""
    pace = measure_pace(device)
    costs = []
    for size in study.sizes:
        for method in study.methods:
            taken = sum(f"{size}/{method}/{seed}" in study.runs for seed in study.seeds)
            settings = resolve_settings(load_settings(size, method, assignments=study.set)[0])[0]
            views = settings.train.steps * settings.train.batch
            operations = views * count_operations(settings)
            runs = len(study.seeds) - taken
            hours = runs * operations / pace / 3600
            cost = Cost(
                size=size, method=method, runs=runs, steps=settings.train.steps, views=views, operations=operations, hours=hours
            )
            costs.append(cost)
    return costs


def count_operations(settings: Settings) -> float:
    """Count the floating-point operations of a step per view: the student's forward and backward pass, and the teacher's passes."""
    # Not built on the meta device, because third-party networks read values of their parameters in their constructors.
    student = assembly.build_networks(settings)[0].to("meta")
    with torch.device("meta"):
        view = torch.empty(1, 1, *(settings.view.side,) * 3)
        units = torch.ones(1, (settings.view.side // UNIT) ** 3, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student.encoder(view)
    forward = counter.get_total_flops()
    heads = 2.0 * sum(p.numel() for name, p in student.named_parameters() if name.startswith("projectors.")) * units.numel() / 3
    noisy = settings.distils
    clean = settings.masking.choice.needs_attention and (settings.masking.attention_from == "clean" or not noisy)
    passes = 1 + BACKWARD + noisy + (clean and settings.teacher.noise > 0)
    return float(forward * passes + heads * (1 + BACKWARD + noisy))


def measure_pace(device: str) -> float:
    """Measure floating-point operations per second in steps of `tiny` on two views on `device`, after one warmup step (median)."""
    settings = resolve_settings(load_settings("tiny", assignments=["train.batch=2"])[0])[0]
    student, teacher = assembly.build_networks(settings)
    student.to(device).train()
    if teacher is not None:
        teacher.to(device)
    targets = Targets(assembly.compose_rules(settings), int(settings.projector.prototypes), device=device)
    units = (settings.view.side // UNIT) ** 3
    pair = ViewPair(
        views=torch.rand(1, 2, 1, *(settings.view.side,) * 3, device=device),
        masking=torch.rand(1, 2, units, 8, device=device),
        noise=torch.rand(1, 2, units, device=device),
        drop_path=torch.ones(student.encoder.branches, 1, 2, device=device),
    )
    seconds: list[float] = []
    for _ in range(TIMED_STEPS + 1):
        began = time.perf_counter()
        accumulate_gradients(student, teacher, [pair], assembly.compose_method(settings), targets, 0.05)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * count_operations(settings) / statistics.median(seconds[1:])


def total_hours(costs: Sequence[Cost]) -> float:
    """Sum the hours of all pretrainings, run one after the other on one device."""
    return sum(cost.hours for cost in costs)
