"""What `auto` becomes, with the reason; and which settings have no effect.

Recipe R (METHOD, Small runs) was found with a prototype at 2 to 16 views a step, where an EMA centre and iBOT's
temperatures left every target at ln K or collapsed it. The paper's values are kept where a step has many views.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dagman.settings.tree import Settings

QUEUE = 256
"""Views the queue holds with recipe R. [ours]"""
FEW_VIEWS = 32
"""Below this many views a step, `auto` means recipe R. [ours]"""
PAPER_LR, PAPER_BATCH, SMALL_LR = 8e-4, 64, 3e-4


def resolve_settings(settings: Settings) -> tuple[Settings, list[str]]:
    """Settings without `auto` (machine choices excepted), and one line for each choice with its reason."""
    batch = settings.train.batch
    recipe = settings.train.recipe
    lines = []
    if recipe == "auto":
        recipe = "R" if batch < FEW_VIEWS else "paper"
        lines.append(f"recipe {recipe}: {batch} views a step, {'fewer' if recipe == 'R' else 'not fewer'} than {FEW_VIEWS}")
    small = recipe == "R"
    changes: dict[str, dict[str, Any]] = {"train": {"recipe": recipe}}

    def settle(section: str, key: str, value: Any, reason: str) -> None:
        if getattr(getattr(settings, section), key) == "auto":
            changes.setdefault(section, {})[key] = value
            lines.append(f"{section}.{key} = {value}: {reason}")

    settle("projector", "prototypes", 1024 if small else 8192, "recipe R" if small else "iBOT, SMIT")
    settle(
        "teacher", "momentum", 0.99 if small else 0.996, "recipe R: a short run needs a quicker teacher" if small else "iBOT, SMIT"
    )
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
        "few views a step get prototypes at random without one" if small else "many views a step",
    )
    lr = SMALL_LR if small else PAPER_LR * (batch / PAPER_BATCH) ** 0.5
    settle("optim", "lr", lr, "recipe R" if small else f"8e-4 * sqrt({batch} / {PAPER_BATCH}), App. A")
    if settings.train.micro_batch == "auto":
        micro = next(m for m in range(min(batch, 16), 0, -1) if batch % m == 0 and m % 2 == 0)
        changes["train"]["micro_batch"] = micro
        if micro < batch:
            lines.append(f"train.micro_batch = {micro}: {batch} views a step in {batch // micro} parts")
    values = settings.model_dump()
    for section, change in changes.items():
        values[section].update(change)
    return Settings.model_validate(values), lines


def list_idle_settings(settings: Settings, given: Iterable[str]) -> list[str]:
    """One warning for each key that the user gave and that has no effect in this combination of resolved settings."""
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
    idle(["teacher.momentum", "teacher.momentum_end"], not settings.needs_teacher, "this method has no teacher")
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
        idle(["teacher.queue"], fixed, "neither the centre nor the temperature looks at the queue")
    sa = ["model.sa_stage", "model.sa_heads", "model.sa_depth", "model.sa_position"]
    idle(sa, not settings.model.semantic_attention, "model.semantic_attention is false")
    return warnings
