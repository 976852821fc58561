"""Recomputes a saved step alone, to find what is not finite first, and in which views and weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dagman.errors import RunError
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients
from dagman.training.batches import draw_pairs
from dagman.training.checkpoints import fill_state, read_folder
from dagman.training.recovery.broken import FOLDER, list_broken, locate_views
from dagman.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The result of a step that was recomputed on the CPU in float32.

    Attributes:
        step: Counted from 1.
        losses: The losses by name, with `total` and `grad_norm`.
        recorded: The same values in the run; "nan" and "inf" as text.
        weights: Names of weights that were not finite before the step.
        modules: Modules of the student whose output was not finite, in the order in which they were reached.
        gradients: Names of weights whose gradient is not finite.
        crops: Scan and first voxel of each view, as pairs u and v.
        ranges: Smallest and largest stored value of each pair of views.
    """

    step: int
    losses: dict[str, float]
    recorded: dict[str, float | str]
    weights: list[str]
    modules: list[str]
    gradients: list[str]
    crops: list[list[dict[str, Any]]]
    ranges: list[tuple[int, int]]

    @property
    def is_finite(self) -> bool:
        """Whether all losses and the gradient are finite this time."""
        return all(math.isfinite(value) for value in self.losses.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite as text."""
        losses = {name: value if math.isfinite(value) else str(value) for name, value in self.losses.items()}
        return {**asdict(self), "losses": losses, "is_finite": self.is_finite}


def replay_step(run: str | Path, step: int) -> Replay:
    """Recompute a saved step; the run is not changed.

    Raises:
        RunError: The run has not saved this step, or the saved files are damaged.
    """
    path = Path(run)
    settings = Run(path).settings
    if step not in list_broken(path):
        kept = ", ".join(map(str, list_broken(path))) or "none"
        raise RunError(
            f"has not saved step {step}", where=path, do=f"Steps that were saved because their loss was not finite: {kept}"
        )
    folder = path / FOLDER / f"step-{step:06d}"
    values, files = read_folder(folder)
    student, teacher = assembly.build_networks(settings)
    targets = assembly.build_targets(settings)
    fill_state(folder, values, files, student.train(), teacher, targets)
    try:
        batch = load_file(locate_views(path, step))
    except (SafetensorError, OSError) as error:
        raise RunError(f"the views of step {step} are damaged: {error}", where=path, do="Replay another step") from None
    pairs, size = len(batch["u"]), int(settings.train.micro_batch) // 2
    drawn = draw_pairs(batch, settings, step - 1, range(pairs), student.encoder.branches, size, torch.device("cpu"))
    reached: list[str] = []
    _watch_modules(student, reached)
    scheduled = assembly.schedule_temperature(settings, step - 1)
    losses = accumulate_gradients(student, teacher, drawn, assembly.compose_method(settings), targets, scheduled)
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), settings.optim.clip)
    gradients = [name for name, p in student.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    ranges = [(int(min(u.min(), v.min())), int(max(u.max(), v.max()))) for u, v in zip(batch["u"], batch["v"], strict=True)]
    return Replay(
        step=step,
        losses={"total": losses.total.item(), **{k: v.item() for k, v in losses.parts.items()}, "grad_norm": norm.item()},
        recorded=values["found"],
        weights=[name for name, p in student.named_parameters() if not torch.isfinite(p).all()],
        modules=list(dict.fromkeys(reached)),
        gradients=gradients,
        crops=values["crops"],
        ranges=ranges,
    )


def _watch_modules(student: nn.Module, reached: list[str]) -> None:
    """Append the names of modules to `reached` whose output is not finite."""
    for name, module in student.named_modules():

        def look(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                reached.append(name)

        module.register_forward_hook(look)
