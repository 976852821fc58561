"""Steps whose loss or gradient was not finite: saved so that each can be recomputed alone, and skipped from then on.

`RUN/broken/step-N/` is a checkpoint of the state before step N, whose `state.json` also holds the seed, scans, crops, losses and
gradient norm; `step-N.views.safetensors` beside it holds the step's views as they were read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from dagman.records.files import write_whole
from dagman.settings import Settings
from dagman.training.checkpoints import Snapshot, list_checkpoints, write_checkpoint
from dagman.training.views import ViewDataset

FOLDER = "broken"


class Broken(NamedTuple):
    """A step (from 0) whose loss or gradient is not finite: the state before it, losses by name and `grad_norm`."""

    step: int
    before: Snapshot
    found: dict[str, Tensor]


class Explanation(NamedTuple):
    """How such a step is described: in an error (`what`, `do`), and in a note of the run."""

    what: str
    do: str
    note: str


def explain_broken(run: Path, step: int, scans: Sequence[str]) -> Explanation:
    """Describe step `step` (counted from 1)."""
    return Explanation(
        what=f"the loss or its gradient is not finite at step {step}, on scans {', '.join(scans)}",
        do=f"Recompute it (dagman replay {run} {step}), check these scans, or lower optim.lr",
        note=f"Losses or gradient: not finite at step {step}. Lower optim.lr, or check the scans of that step.",
    )


def list_broken(run: str | Path) -> list[int]:
    """The saved steps, counted from 1 as in `metrics.jsonl`, ascending."""
    return list_checkpoints(run, FOLDER)


def keep_broken(run: Path, broken: Broken, dataset: ViewDataset, settings: Settings, state: Mapping[str, Any]) -> list[str]:
    """Save a step with the state before it and the values `state`; returns the scans of its views."""
    step = broken.step + 1
    item = dataset.read_step(broken.step)
    places = [[{"scan": crop.scan, "start": list(crop.start)} for crop in pair] for pair in item.pop("places")]
    item.pop("unreadable", None)
    # Before the checkpoint: where there is a state.json, the views are complete.
    views = run / FOLDER / f"step-{step:06d}.views.safetensors"
    with write_whole(views) as temporary:
        save_file({name: value.contiguous() for name, value in item.items()}, temporary)
    facts = {
        "seed": settings.seed,
        "crops": places,
        "found": {name: _describe_number(float(value)) for name, value in broken.found.items()},
    }
    write_checkpoint(run, step, broken.before, {**state, **facts}, keep=10**6, under=FOLDER)
    return sorted({pair[0]["scan"] for pair in places})


def locate_views(run: Path, step: int) -> Path:
    """The file with the views of a saved step."""
    return run / FOLDER / f"step-{step:06d}.views.safetensors"


def _describe_number(value: float) -> float | str:
    """A number, or its name where JSON has none for it (NaN and infinity)."""
    return value if math.isfinite(value) else str(value)
