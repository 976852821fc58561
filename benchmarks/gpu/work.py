"""Whole pretraining steps on random views, as `dagman pretrain` takes them, without reading and without monitors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dagman.method import Targets, ViewPair
from dagman.method.masking import DRAWS
from dagman.method.networks import Network, unit_grid
from dagman.method.noise import count_noise_draws
from dagman.method.teacher import update_teacher
from dagman.settings import Settings, load_settings, resolve_settings
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients


@dataclass(frozen=True, kw_only=True)
class Work:
    """A step that can be repeated, and what it is made of."""

    settings: Settings
    student: Network
    teacher: Network | None
    step: Callable[[], torch.Tensor]
    "One optimiser step; returns the loss, on the device."


def build_work(
    size: str,
    *,
    batch: int | None,
    device: str,
    precision: str,
    kernels: str = "reference",
    method: str = "dagman",
    micro: int | None = None,
) -> Work:
    """Networks, optimiser and random views of a preset; `micro` views at once (default: the preset's)."""
    asked = [f"train.batch={batch}"] if batch else []
    asked += [f"train.micro_batch={micro}"] if micro else []
    settings = resolve_settings(load_settings(size, method, assignments=asked)[0])[0]
    student, teacher = assembly.build_networks(settings)
    networks = [student.to(device).train(), *([] if teacher is None else [teacher.to(device)])]
    for network in networks:
        network.encoder.use_kernels(kernels)
    composed = assembly.compose_method(settings)
    prototypes, names = int(settings.projector.prototypes), assembly.name_projectors(settings)
    targets = Targets(assembly.compose_rules(settings), prototypes, names, torch.device(device))
    groups = assembly.group_parameters(student, settings.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=torch.device(device).type == "cuda")
    held = int(settings.train.micro_batch)
    pairs = [_draw(settings, student, held, device) for _ in range(settings.train.batch // held)]

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            losses = accumulate_gradients(student, teacher, pairs, composed, targets, 0.05)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        if teacher is not None:
            update_teacher(teacher, student, 0.99)
        return losses.total

    return Work(settings=settings, student=student, teacher=teacher, step=step)


def _draw(settings: Settings, student: Network, views: int, device: str) -> ViewPair:
    side = settings.view.side
    grid = unit_grid((side,) * 3)
    units, dropped = grid[0] * grid[1] * grid[2], count_noise_draws(grid, settings.teacher.granularity)
    return ViewPair(
        views=torch.rand(views // 2, 2, 1, side, side, side, device=device),
        masking=torch.rand(views // 2, 2, units, DRAWS, device=device),
        noise=torch.rand(views // 2, 2, dropped, device=device),
        drop_path=torch.rand(student.encoder.branches, views // 2, 2, device=device),
    )
