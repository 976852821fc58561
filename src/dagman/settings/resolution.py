"""Replace `auto` in settings, giving a reason for each choice, and list settings that have no effect.

Recipe R (METHOD, Small runs) was found with a prototype at 2 to 16 views per step, where an EMA centre and iBOT's temperatures
either left the entropy of all targets at ln K or collapsed them. The paper's values are used if a step has many views.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from dagman.settings.momentum import LONG_END, LONG_START, solve_momentum
from dagman.settings.tree import Settings

QUEUE = 256
"""Number of views in the queue with recipe R. [ours]"""
FEW_VIEWS = 32
"""Number of views per step below which `auto` means recipe R. [ours]"""
MICRO_BATCH = 16
"""Default maximum number of views processed at once. [ours]"""
SMALL_BATCH, PAPER_BATCH = 16, 64
"""Views per step of recipe R and of App. A; learning rate and number of prototypes are interpolated between the two. [ours]"""
SMALL_LR, PAPER_LR = 3e-4, 8e-4
SMALL_PROTOTYPES, PAPER_PROTOTYPES = 1024, 8192
MACHINE_CHOICES = frozenset(
    f"train.{name}" for name in ("precision", "device", "kernels", "compile", "read_after", "skip_hidden", "workers")
)
"""Settings that remain `auto` in a run's folder, because they are chosen on each machine."""
_OF_STORE = frozenset({"view.modality"})
"""Settings resolved from the store, not here. Runs made before `view.modality` existed have used all modalities."""


def resolve_settings(settings: Settings) -> tuple[Settings, list[str]]:
    """Replace `auto` in all settings except `MACHINE_CHOICES` and those that depend on the store.

    Returns:
        The resolved settings, and one line per choice with its reason.
    """
    batch, steps = settings.train.batch, settings.train.steps
    recipe = settings.train.recipe
    lines = []
    position = {"R": 0.0, "paper": 1.0}.get(recipe, _locate_batch(batch))
    if recipe == "auto":
        recipe = "R" if batch < FEW_VIEWS else "paper"
        what = "R, for few views per step" if recipe == "R" else "paper, the paper's values"
        lines.append(
            f"recipe {what}: {batch} views per step, {'fewer' if recipe == 'R' else 'not fewer'} than {FEW_VIEWS} "
            "(docs/method.md, Small runs)"
        )
    small = recipe == "R"
    changes: dict[str, dict[str, Any]] = {"train": {"recipe": recipe}}

    def settle(section: str, key: str, value: Any, reason: str) -> None:
        if getattr(getattr(settings, section), key) == "auto":
            changes.setdefault(section, {})[key] = value
            lines.append(f"{section}.{key} = {value}: {reason}")

    between = f"{batch} views per step lie between recipe R ({SMALL_BATCH}) and App. A ({PAPER_BATCH})"
    settle("projector", "prototypes", _round_prototypes(position), _explain(position, "recipe R", between, "iBOT, SMIT"))
    given = settings.teacher.momentum
    start, end = solve_momentum(steps, settings.teacher.average_age, None if given == "auto" else given)
    long = (start, end) == (LONG_START, LONG_END)
    age = f"the teacher's weights have an average age of {settings.teacher.average_age:.0%} of the {steps} steps"
    why = "iBOT, SMIT" if long else age
    settle("teacher", "momentum", start, why)
    settle("teacher", "momentum_end", end, why)
    settle(
        "teacher", "centering", "sinkhorn" if small else "mean", "recipe R: an EMA centre left targets at ln K" if small else "iBOT"
    )
    settle(
        "teacher", "temperature", "entropy" if small else "schedule", "recipe R: solved to the target entropy" if small else "iBOT"
    )
    settle(
        "teacher",
        "queue",
        QUEUE if small else 0,
        "without a queue, few views per step get random prototypes" if small else "many views per step",
    )
    rate = PAPER_LR * (batch / PAPER_BATCH) ** 0.5 if position == 1 else SMALL_LR * (PAPER_LR / SMALL_LR) ** position
    settle("optim", "lr", rate, _explain(position, "recipe R", between, f"8e-4 * sqrt({batch} / {PAPER_BATCH}), App. A"))
    if settings.train.micro_batch == "auto":
        micro = _cut_evenly(batch)
        changes["train"]["micro_batch"] = micro
        if micro < batch:
            lines.append(f"train.micro_batch = {micro}: {batch} views per step in {math.ceil(batch / micro)} parts")
    values = settings.model_dump()
    for section, change in changes.items():
        values[section].update(change)
    return Settings.model_validate(values), lines


def list_unresolved(settings: Settings) -> list[str]:
    """List keys that are still `auto` although `resolve_settings` replaces them; empty for the settings of a run."""
    sections = {name: value for name, value in settings.model_dump().items() if isinstance(value, dict)}
    keys = [f"{name}.{key}" for name, section in sections.items() for key, value in section.items() if value == "auto"]
    return [key for key in keys if key not in MACHINE_CHOICES | _OF_STORE]


def _locate_batch(batch: int) -> float:
    """Locate the batch size between recipe R (0) and App. A (1), on a logarithmic scale."""
    return min(1.0, max(0.0, math.log(batch / SMALL_BATCH) / math.log(PAPER_BATCH / SMALL_BATCH)))


def _round_prototypes(position: float) -> int:
    return 64 * round(SMALL_PROTOTYPES * (PAPER_PROTOTYPES / SMALL_PROTOTYPES) ** position / 64)


def _explain(position: float, small: str, between: str, paper: str) -> str:
    return small if position == 0 else paper if position == 1 else between


def _cut_evenly(batch: int) -> int:
    """Choose the micro-batch size: as few parts as `MICRO_BATCH` allows, of nearly equal numbers of pairs."""
    pairs = batch // 2
    return 2 * math.ceil(pairs / math.ceil(batch / MICRO_BATCH))


def list_idle_settings(settings: Settings, given: Iterable[str]) -> list[str]:
    """List a warning for each key in `given`, set by the user, that has no effect with these resolved settings."""
    given = set(given)
    warnings: list[str] = []

    def idle(keys: Iterable[str], when: bool, because: str) -> None:
        warnings.extend(f"{key} has no effect: {because}." for key in keys if when and key in given)

    masking, teacher = settings.masking, settings.teacher
    attends = masking.choice.needs_attention
    dims = settings.distils or (attends and masking.attention_from == "noisy")
    idle(["masking.hint_pool"], not masking.choice.gives_hints, f'masking.kind is "{masking.kind}"')
    idle(["masking.hint_pool"], masking.choice.gives_hints and masking.hints == 0, "masking.hints is 0")
    idle(["masking.attention_from"], not attends, f'masking.kind is "{masking.kind}"')
    idle(["masking.attention_from"], attends and teacher.noise == 0, "teacher.noise is 0")
    idle(["teacher.granularity"], teacher.noise == 0, "teacher.noise is 0")
    idle(["teacher.noise", "teacher.granularity"], not dims and teacher.noise > 0, "no loss has a teacher")
    momenta = ["teacher.momentum", "teacher.momentum_end", "teacher.average_age"]
    idle(momenta, not settings.needs_teacher, "this method has no teacher")
    idle(["teacher.average_age"], {"teacher.momentum", "teacher.momentum_end"} <= given, "both momenta were given")
    idle(
        ["teacher.centering", "teacher.temperature", "teacher.queue", "losses.student_temperature", "train.freeze_epochs"],
        not settings.distils,
        "no loss has a teacher",
    )
    layers = ["projector.hidden", "projector.bottleneck"]
    idle(layers, settings.distils and settings.projector.layers == 1, "projector.layers is 1")
    idle([*layers, "projector.layers", "projector.prototypes"], not settings.distils, "no loss has a projector")
    scheduled = ["teacher.temperature_start", "teacher.temperature_end", "teacher.temperature_warmup"]
    idle([*scheduled, "teacher.target_entropy", "teacher.center_momentum"], not settings.distils, "no loss has a teacher")
    if settings.distils:
        idle(["teacher.target_entropy"], teacher.temperature == "schedule", 'teacher.temperature is "schedule"')
        idle(scheduled, teacher.temperature == "entropy", 'teacher.temperature is "entropy"')
        idle(["teacher.center_momentum"], teacher.centering == "sinkhorn", 'teacher.centering is "sinkhorn"')
        fixed = teacher.centering == "mean" and teacher.temperature == "schedule"
        idle(["teacher.queue"], fixed, "neither the centre nor the temperature uses the queue")
    sa = ["model.sa_stage", "model.sa_heads", "model.sa_depth", "model.sa_position"]
    idle(sa, not settings.model.semantic_attention, "model.semantic_attention is false")
    idle(sa, settings.model.own_cls, f"the backbone {settings.model.backbone} has a [CLS] token of its own")
    sizes = [f"model.{name}" for name in ("embed", "depths", "heads", "window", "mlp_ratio", "drop_path")]
    idle(sizes, settings.model.fixed_sizes, f"the sizes of {settings.model.backbone} follow from its name")
    idle(["model.window"], settings.model.own_cls, f"the backbone {settings.model.backbone} has no windows")
    return warnings
