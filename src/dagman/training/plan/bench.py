"""`dagman bench`: the pretraining speed of this machine, as a share of its peak speed. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dagman import devices
from dagman.scans.phantom.cohort import write_cohort
from dagman.settings import Settings
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.training.plan.rehearsal import Plan, Rehearsal, plan_pretraining, prepare_rehearsal
from dagman.training.resources.memory import estimate_memory

PATIENTS = 2
"""Patients of the synthetic store that is used if none is given."""
LARGEST_MICRO_BATCH = 256
_CPU_SIDE, _CUDA_SIDE, _ROUNDS = 1024, 8192, 5


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The pretraining speed of a machine with a size and a method.

    Attributes:
        plan: Steps, hours, memory and waiting, as `plan_pretraining` measures them.
        views_per_s, voxels_per_s: Speed of whole steps, reading included.
        flop_per_step: Operations of all matrix products of a step.
        flop_per_s: Speed of one large square product in the precision of the run: the ceiling.
        ceiling_share: Share of the ceiling that the steps reach.
        crops_per_s: Views per second that one process reads from the store.
        largest_micro_batch: Largest micro-batch that fits: tried on a CUDA device, estimated on the CPU; at most 256.
    """

    plan: Plan
    precision: str
    kernels: str
    views_per_s: float
    voxels_per_s: float
    flop_per_step: int
    flop_per_s: float
    ceiling_share: float
    crops_per_s: float
    largest_micro_batch: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "plan": self.plan.to_json()}


def bench_machine(
    source: str | Path | None = None, *, size: str | None = None, method: str | None = None, assignments: Iterable[str] = ()
) -> Bench:
    """Measure steps on a store, or on a synthetic one of two patients; raises as `prepare_rehearsal`."""
    with _find_store(source) as (store, more):
        rehearsal = prepare_rehearsal(store, size, method, assignments=[*more, *assignments])
        learner, settings = rehearsal.learner, rehearsal.learner.settings
        plan = plan_pretraining(rehearsal)
        counter = FlopCounterMode(display=False)
        # A compiled graph would hide its products from the counter.
        with counter, learner.uncompiled():
            list(rehearsal.take(1))
        operations = counter.get_total_flops()
        ceiling = measure_ceiling(str(learner.device), learner.precision)
        seconds = plan.seconds[0]
        return Bench(
            plan=plan,
            precision=learner.precision,
            kernels=devices.choose_kernels(settings.train.kernels, str(learner.device)).value,
            views_per_s=plan.views / seconds,
            voxels_per_s=plan.views * settings.view.side**3 / seconds,
            flop_per_step=operations,
            flop_per_s=ceiling,
            ceiling_share=operations / seconds / ceiling,
            crops_per_s=plan.reading,
            largest_micro_batch=find_largest_micro_batch(rehearsal),
        )


def measure_ceiling(device: str, precision: str) -> float:
    """Operations per second of one large square product, the best of five."""
    cuda = torch.device(device).type == "cuda"
    side = _CUDA_SIDE if cuda else _CPU_SIDE
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # Not ones: a card multiplies equal numbers faster than those of a run.
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        left @ right
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


def find_largest_micro_batch(rehearsal: Rehearsal) -> int:
    """The largest micro-batch that fits, a power of two and at least 2.

    On a CUDA device, steps are tried until memory runs out. On the CPU this would end the process, so the same estimate as in
    `pretrain` decides.
    """
    learner, settings = rehearsal.learner, rehearsal.learner.settings
    fits, device = 2, str(learner.device)
    while fits < LARGEST_MICRO_BATCH:
        size = 2 * fits
        if learner.device.type == "cuda":
            train = settings.train.model_copy(update={"batch": size, "micro_batch": size})
            if not _try_step(rehearsal, settings.model_copy(update={"train": train})):
                break
        else:
            held, free = devices.held_memory(), devices.free_memory(device)
            if not estimate_memory(settings, size, device=device, precision=learner.precision, process=held, free=free).fits:
                break
        fits = size
    return fits


def _try_step(rehearsal: Rehearsal, settings: Settings) -> bool:
    learner, dataset = rehearsal.learner, rehearsal.dataset
    before = learner.settings, dataset.batch, dataset.own
    learner.settings, dataset.batch, dataset.own = settings, settings.train.batch, range(settings.train.batch // 2)
    try:
        list(rehearsal.take(1))
    except torch.OutOfMemoryError:
        return False
    finally:
        learner.settings, dataset.batch, dataset.own = before
        torch.cuda.empty_cache()
    return True


@contextmanager
def _find_store(source: str | Path | None) -> Iterator[tuple[Path, list[str]]]:
    """A store, and the settings that it needs."""
    if source is not None:
        yield Path(source), []
        return
    with TemporaryDirectory() as folder:
        place = Path(folder)
        write_cohort(place / "cohort", patients=PATIENTS)
        prepare_store([place / "cohort"], place / "store", Preparation(), workers=1)
        # Only the speed of steps is measured, so it does not matter how often the two scans are seen.
        yield place / "store", ["train.many_passes=true"]
