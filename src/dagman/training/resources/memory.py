"""Memory of a training, estimated before anything is allocated, and the micro-batch that fits.

The networks are built on torch's meta device, which holds shapes and no numbers: weights are counted, and one forward pass of a
pair of views counts what autograd would keep for the backward pass. What that leaves out, temporaries and an allocator that keeps
what is freed, is one factor, calibrated on the CPU (decision 0025).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from dagman.errors import DagmanError, RunError
from dagman.method.networks import Network
from dagman.settings import Settings, load_settings, resolve_settings
from dagman.settings.presets import list_presets
from dagman.training.assembly import build_networks, count_masked
from dagman.training.parallel.sharing import size_micro_batch

CPU_FACTOR, CUDA_FACTOR = 1.5, 1.0
"""Peak of a backward pass over what autograd keeps: four CPU runs lie from 14 % below to 19 % above; `small` on an H100, bf16,
within 3 %. [ours]"""
BF16_FACTOR = 0.82
"""Of what is kept in float32: 293 of 360 MiB, as softmax and norms stay float32. [ours]"""
LARGEST_SHARE = 0.9
"""Of the free memory that a run may be expected to take."""
VIEW_BYTES = 12
"""A voxel of a step's views: int16 as read, float32 as given to the networks, and what turns one into the other."""
VALIDATION_BYTES = 76
"""A voxel of the validation views: reading them, restoring them twice and measuring both holds 19 float32 of each, 305 MiB for 16
views of 64^3 of `tiny-vit`. [ours]"""
_VALUE, _KEPT_TARGETS, _BRIEF_TARGETS = 4, 2, 3
"""Bytes of a float32; copies of a step's patch logits that last through it, and those that last for their softmax alone."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a run will hold at its peak, by what they are for.

    Attributes:
        micro_batch: Views that go through the student at once.
        weights: Student and teacher, with the student's gradients and AdamW's two moments.
        step: Views of a step, and the teacher's targets of it.
        activations: What autograd keeps of a micro-batch, with temporaries; what the validation views take where that is more.
        process: What the process held before.
        free: What was free then; None where the system does not state it.
    """

    micro_batch: int
    weights: int
    step: int
    activations: int
    process: int
    free: int | None

    @property
    def needed(self) -> int:
        """Beyond what the process holds already."""
        return self.weights + self.step + self.activations

    @property
    def total(self) -> int:
        """Of the whole process."""
        return self.process + self.needed

    @property
    def fits(self) -> bool:
        """Whether it is at most `LARGEST_SHARE` of what is free."""
        return self.free is None or self.needed <= LARGEST_SHARE * self.free

    def describe(self) -> str:
        """The line that is printed before a run."""
        free = "" if self.free is None else f"; {_show(self.free)} free"
        return (
            f"memory: about {_show(self.total)} at the peak (weights, gradients and moments {_show(self.weights)}, a step's views "
            f"and targets {_show(self.step)}, activations of {self.micro_batch} views {_show(self.activations)}){free}"
        )

    def to_json(self) -> dict[str, Any]:
        """As `command.json` holds it."""
        return {**asdict(self), "total": self.total}


def fit_micro_batch(
    settings: Settings, *, device: str, precision: str, process: int, free: int | None, fixed: bool, ranks: int = 1
) -> MemoryEstimate:
    """The largest micro-batch that fits in the memory that is free, and what it will take.

    fixed: The micro-batch was asked for, or is that of a run that goes on. ranks: Processes that share a step, for each of which
    this much is free.

    Raises:
        RunError: Nothing fits; the message has the numbers, and what would.
    """
    views, share = 2 * size_micro_batch(settings, ranks), settings.train.batch // ranks
    sizes = [views] if fixed else [views, *_list_smaller(share, views)]
    for size in sizes:
        estimate = estimate_memory(settings, size, device=device, precision=precision, process=process, free=free, ranks=ranks)
        if estimate.fits:
            return estimate
    what = f"size {settings.size} with views of {settings.view.side}^3, {settings.train.batch} per step and {sizes[-1]} at once"
    what += f" by each of {ranks} ranks" if ranks > 1 else ""
    raise RunError(
        f"{what}, needs about {_show(estimate.needed)} of memory (weights {_show(estimate.weights)}, a step's views and targets "
        f"{_show(estimate.step)}, activations {_show(estimate.activations)}), and {_show(estimate.free or 0)} are free"
        + (" for each" if ranks > 1 else ""),
        do=_suggest(settings, device, precision, free, fixed),
    )


def estimate_memory(
    settings: Settings, micro_batch: int, *, device: str, precision: str, process: int = 0, free: int | None = None, ranks: int = 1
) -> MemoryEstimate:
    """What a process of a run of resolved settings will hold, with micro-batches of this many views; ranks: that share a step."""
    student, teacher, kept, width = _measure_networks(_key(settings))
    cuda = torch.device(device).type == "cuda"
    factor = (CUDA_FACTOR if cuda else CPU_FACTOR) * (BF16_FACTOR if precision == "bf16" else 1.0)
    _, counts = count_masked(settings)
    rows = counts.hidden if "ampd" in _name_losses(settings) else 0
    targets = settings.train.batch // ranks * rows * int(settings.projector.prototypes) * _VALUE
    views = settings.train.batch // ranks * settings.view.side**3 * VIEW_BYTES
    validation = settings.train.monitor_views * settings.view.side**3 * VALIDATION_BYTES
    activations = round(factor * (kept / 2 + rows * _count_head_values(settings, width) * _VALUE) * micro_batch)
    return MemoryEstimate(
        micro_batch=micro_batch,
        weights=(4 * student + teacher) * _VALUE,
        step=views + _KEPT_TARGETS * targets,
        # The softmax of a step's targets is over before the first backward pass, and AdamW's own temporaries come after the last.
        activations=max(activations, validation, _BRIEF_TARGETS * targets, student * _VALUE),
        process=0 if cuda else process,
        free=free,
    )


def check_estimate(estimate: MemoryEstimate, peak: float) -> str:
    """A line on what the first micro-batch took, `peak` bytes of the process so far, beside the estimate.

    Raises:
        RunError: It took so much more that the step would not fit.
    """
    # AdamW makes its moments, half of the weights' share, when the step ends.
    coming = estimate.weights // 2
    if estimate.free is not None and peak + coming > estimate.process + estimate.free:
        what = f"the first micro-batch took {_show(peak)} of memory, but {_show(estimate.total)} were estimated for the run"
        do = "Set train.micro_batch=2, or a smaller view.side or size, in another folder"
        raise RunError(f"{what}, and {_show(coming)} more are to come", do=do)
    return f"memory: {_show(peak)} at the peak of the first micro-batch; about {_show(estimate.total)} estimated for the run"


def count_kept_bytes(student: Network, side: int, views: int = 2) -> int:
    """Bytes that autograd keeps of one forward pass of `views` views up to the projectors, for a network on the meta device."""
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in student.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Views share a storage, and the weights are counted by themselves.
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    device = next(student.parameters()).device
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        drop = torch.ones(student.encoder.branches, views, device=device) if student.encoder.branches else None
        encoded = student.encoder.encode(torch.empty(views, 1, side, side, side, device=device), drop=drop)
        if student.reconstruction is not None:
            student.reconstruction(encoded.maps[-1])
        if student.semantic is not None:
            student.summarize(encoded)
    return sum(storage.nbytes() for storage in kept.values())


@lru_cache(maxsize=16)
def _measure_networks(key: str) -> tuple[int, int, int, int]:
    """Weights of student and teacher, the bytes that autograd keeps of a pair of views, and the channels of a unit's token.

    A backbone that cannot do without numbers, such as MONAI's, is taken for a Swin of the same sizes.
    """
    settings = Settings.model_validate_json(key)
    try:
        with torch.device("meta"):
            student, teacher = build_networks(settings)
        kept = count_kept_bytes(student, settings.view.side)
        if settings.train.recompute:
            # A block that is computed again holds what it had given up; those of the first stage are the largest.
            student.encoder.recompute(0)
            kept += (count_kept_bytes(student, settings.view.side) - kept) // settings.model.depths[0]
    except (RuntimeError, NotImplementedError):
        if settings.model.backbone == "swin":
            raise
        model = settings.model.model_copy(update={"backbone": "swin"})
        return _measure_networks(_key(settings.model_copy(update={"model": model})))
    counts = [sum(p.numel() for p in network.parameters()) if network is not None else 0 for network in (student, teacher)]
    return counts[0], counts[1], kept, student.encoder.widths[student.encoder.unit_stage - 1]


def _key(settings: Settings) -> str:
    return settings.model_dump_json()


def _name_losses(settings: Settings) -> list[str]:
    return [name for name in ("ampd", "aitd", "gitd") if getattr(settings.losses, name) > 0]


def _count_head_values(settings: Settings, width: int) -> int:
    """Values that autograd keeps of one patch row in its projector: the token, each hidden layer twice, the bottleneck, logits."""
    p = settings.projector
    hidden = 0 if p.layers == 1 else 2 * p.hidden * (p.layers - 1) + 2 * p.bottleneck
    # Logits over the temperature, their softmax, and their product with the targets.
    return 2 * width + hidden + 3 * int(p.prototypes)


def _list_smaller(batch: int, views: int) -> Iterator[int]:
    """Sizes of micro-batches below `views`, in pairs of views: each cuts the step into the next larger number of parts."""
    pairs, before = batch // 2, views
    for parts in range(2, pairs + 1):
        size = 2 * math.ceil(pairs / parts)
        if size < before:
            before = size
            yield size


def _suggest(settings: Settings, device: str, precision: str, free: int | None, fixed: bool) -> str:
    """What would fit: a smaller micro-batch, stages computed again, smaller views, a smaller size of the model."""
    sides = [f"view.side={side}" for side in range(settings.view.side - 32, 0, -32)]
    small = ["train.micro_batch=2"] if fixed and int(settings.train.micro_batch) > 2 else []
    again = [f"train.recompute={stages}" for stages in range(settings.train.recompute + 1, len(settings.model.depths) + 1)]
    fitting = []
    for change in [*small, *again, *sides]:
        changed = _change(settings, change)
        if changed is not None and (estimate := estimate_memory(changed, 2, device=device, precision=precision, free=free)).fits:
            fitting.append(f"--set {change} (about {_show(estimate.needed)})")
            break
    alike = [name for name in list_presets("sizes") if load_settings(name)[0].model.backbone == settings.model.backbone]
    for size in sorted(alike, key=lambda name: -load_settings(name)[0].view.side):
        if size != settings.size and load_settings(size)[0].view.side < settings.view.side:
            changed = resolve_settings(load_settings(size, settings.method)[0])[0]
            estimate = estimate_memory(changed, 2, device=device, precision=precision, free=free)
            if estimate.fits:
                fitting.append(f"--size {size} (about {_show(estimate.needed)})")
                break
    return f"What would fit: {' or '.join(fitting)}" if fitting else "Use a machine with more memory, or free some"


def _change(settings: Settings, assignment: str) -> Settings | None:
    section, _, rest = assignment.partition(".")
    name, _, value = rest.partition("=")
    values = settings.model_dump()
    values[section][name] = int(value)
    try:
        return Settings.model_validate(values)
    except (ValueError, DagmanError):
        return None


def _show(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
