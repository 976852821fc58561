"""Whole pretraining steps on random views, as `dagman pretrain` takes them, without reading and without monitors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dagman.method import ViewPair
from dagman.method.masking import DRAWS
from dagman.method.networks import Network, unit_grid
from dagman.method.noise import count_noise_draws
from dagman.settings import Settings, load_settings, resolve_settings
from dagman.training.learner import Learner
from dagman.training.recovery.outcome import Outcome

STEPS = 10_000
"""Of the run whose steps are taken, so that no schedule moves while they are timed; its second half: projectors learn whole."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A step that can be repeated, and what it is made of."""

    settings: Settings
    student: Network
    teacher: Network | None
    learner: Learner
    step: Callable[[], None]
    "One optimiser step; with `read_after` the losses of the one before are read in it."
    last: Callable[[], dict[str, Any]]
    "The row of the step that was taken last."


def build_work(
    size: str,
    *,
    batch: int | None,
    device: str,
    precision: str,
    method: str = "dagman",
    micro: int | None = None,
    assignments: Sequence[str] = (),
    **fast: Any,
) -> Work:
    """Networks, optimiser and random views of a preset; `micro` views at once (default: the preset's).

    fast: What `Learner` takes besides: kernels, compiled, read_after.
    """
    settings = choose_settings(size, batch=batch, method=method, micro=micro, assignments=assignments)
    learner = Learner(settings, device=device, precision=precision, **fast)
    held = int(settings.train.micro_batch)
    pairs = [_draw(settings, learner.student, held, device) for _ in range(settings.train.batch // held)]
    taken: list[Outcome] = []

    def step() -> None:
        taken.append(learner.advance(pairs, STEPS // 2))
        if len(taken) > 1:
            taken.pop(0).read()

    def last() -> dict[str, Any]:
        row = learner.read(taken[-1])
        if not isinstance(row, dict):
            raise ValueError("the last step was not finite")
        return row

    return Work(settings=settings, student=learner.student, teacher=learner.teacher, learner=learner, step=step, last=last)


def choose_settings(
    size: str, *, batch: int | None, method: str = "dagman", micro: int | None = None, assignments: Sequence[str] = ()
) -> Settings:
    """Those of a preset, as `build_work` takes them."""
    asked = [f"train.steps={STEPS}", *assignments]
    asked += [f"train.batch={batch}"] if batch else []
    asked += [f"train.micro_batch={micro}"] if micro else []
    return resolve_settings(load_settings(size, method, assignments=asked)[0])[0]


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
