"""Builds the parts of a training step from the settings: networks, method, target rules, parameter groups."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from dagman.devices import Choice
from dagman.encoder.folder import EncoderConfig
from dagman.encoder.loading import describe_shapes
from dagman.errors import EncoderError, SettingsError
from dagman.method.masking import MASKINGS, Counts, Masking, MaskingShares
from dagman.method.networks import Network, ProjectorShape, copy_student, unit_grid
from dagman.method.schedules import teacher_temperature
from dagman.method.step import Method
from dagman.method.targets import PROJECTORS, TargetRules, Targets
from dagman.model.backbone import find_backbone, find_unit_stage, is_decayed, list_backbones
from dagman.randomness import address
from dagman.records.names import suggest_name
from dagman.settings import Settings, choices
from dagman.settings.choices import MaskingChoice
from dagman.settings.momentum import Memory, list_momenta, measure_memory
from dagman.settings.tree import STAGES, UNIT
from dagman.training.views import ViewDataset


def register_masking(name: str, masking: Masking, choice: MaskingChoice) -> None:
    """Register a masking: its function, and what settings and reports need to know about it."""
    if name in MASKINGS:
        raise ValueError(f"the masking {name!r} is already registered")
    MASKINGS[name], choices.MASKINGS[name] = masking, choice


def check_backbone(settings: Settings) -> None:
    """Raise SettingsError, with the reason, for a backbone that cannot be pretrained with these settings."""
    name = settings.model.backbone
    try:
        kind = find_backbone(name)
    except EncoderError as error:
        raise SettingsError(f"model.backbone: {error.what}", do=suggest_name(name, list_backbones())) from None
    if not kind.mask_fills:
        raise SettingsError(
            f"model.backbone = {name!r} cannot be pretrained, as it does not support masking: {kind.no_masks}",
            do="Pretrain swin, and use this one as a baseline in the tasks",
        )
    fill = settings.masking.mask_fill
    if fill not in kind.mask_fills:
        raise SettingsError(
            f"masking.mask_fill = {fill!r} is not supported by the backbone {name!r}",
            do=f"Set it to {' or '.join(kind.mask_fills)}",
        )
    if settings.view.side < kind.least_view:
        raise SettingsError(
            f"view.side = {settings.view.side} is too small for the backbone {name!r}, whose last stage would be a single voxel",
            do=f"Set view.side={kind.least_view} or more",
        )
    if settings.teacher.granularity == "patch" and settings.teacher.noise > 0 and kind.token > 2:
        raise SettingsError(
            f'teacher.granularity = "patch" drops patch tokens of 2^3 voxels; those of the backbone {name!r} have {kind.token}^3',
            do="Set teacher.granularity=unit",
        )


def name_projectors(settings: Settings) -> tuple[str, ...]:
    """Return the names of the projectors; a loss of weight 0 has none."""
    return tuple(name for name in PROJECTORS if getattr(settings.losses, name) > 0)


def build_networks(settings: Settings, *, skip_hidden: bool = False) -> tuple[Network, Network | None]:
    """Build student and teacher at step 0: the teacher is a copy of the student, or None if the method does not use one.

    skip_hidden: The decision of `choose_skipping` for `auto`.
    """
    shape, semantic = describe_shapes(settings)
    p = settings.projector
    projectors = ProjectorShape(
        names=name_projectors(settings), layers=p.layers, hidden=p.hidden, bottleneck=p.bottleneck, prototypes=int(p.prototypes)
    )
    # The initial weights are the only numbers drawn by torch's generator; its state is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(settings.seed, "weights") % 2**32)
        student = Network(
            shape,
            semantic,
            projectors,
            reconstruct=settings.losses.amip > 0,
            mask_fill=settings.masking.mask_fill,
            backbone=settings.model.backbone,
        )
    student.encoder.recompute(settings.train.recompute)
    if skip_hidden or settings.train.skip_hidden is True:
        student.encoder.skip_hidden()
    return student, copy_student(student) if settings.needs_teacher else None


def choose_skipping(settings: Settings, device: str = "cpu", compiled: str = "off") -> Choice[str]:
    """Whether hidden windows are "skipped" in the first block, or "computed"; `auto` skips where that was measured to pay.

    Raises SettingsError if it was requested together with CUDA graphs.
    """
    asked = settings.train.skip_hidden
    if asked is True and compiled == "graphs":
        what = "a CUDA graph cannot vary the number of windows that are not hidden"
        raise SettingsError(what, where="train.skip_hidden", do="Leave it at auto, or set train.compile=on")
    if asked != "auto":
        return Choice("hidden windows", "skipped" if asked else "computed", "requested")
    reason = ""
    if torch.device(device).type != "cpu":
        reason = "skipping them has not been measured on a GPU; train.skip_hidden=true enables it"
    elif compiled != "off":
        reason = "encoders are compiled"
    elif settings.model.own_cls:
        reason = f"each token of a {settings.model.backbone} sees all others in its first block"
    elif settings.model.backbone != "swin":
        reason = f"{settings.model.backbone} has none"
    elif UNIT // 2 % settings.model.window:
        reason = f"windows of {settings.model.window} patch tokens do not lie in units of {UNIT // 2}"
    return Choice("hidden windows", "computed" if reason else "skipped", reason or "the same to rounding, 1.2 times as fast")


def count_masked(settings: Settings) -> tuple[int, Counts]:
    """Units of a view, and how many are masked."""
    x, y, z = unit_grid((settings.view.side,) * 3)
    return x * y * z, describe_masking(settings).count(x * y * z)


def describe_masking(settings: Settings) -> MaskingShares:
    """Shares of the units that are masked and given back as hints."""
    masking = settings.masking
    return MaskingShares(ratio=masking.ratio, hints=masking.hints, hint_pool=masking.hint_pool)


def compose_method(settings: Settings) -> Method:
    """The method preset as the step takes it."""
    losses = settings.losses
    return Method(
        masking=MASKINGS[settings.masking.kind],
        shares=describe_masking(settings),
        needs_attention=settings.masking.choice.needs_attention,
        attention_from=settings.masking.attention_from,
        noise=settings.teacher.noise,
        granularity=settings.teacher.granularity,
        weights={name: getattr(losses, name) for name in ("amip", "ampd", "aitd", "gitd")},
        student_temperature=losses.student_temperature,
        symmetric=losses.symmetric,
    )


def compose_rules(settings: Settings) -> TargetRules:
    """Return the rules by which logits are turned into targets."""
    teacher = settings.teacher
    return TargetRules(
        centering=teacher.centering,
        target_entropy=teacher.target_entropy if teacher.temperature == "entropy" else None,
        center_momentum=teacher.center_momentum,
        queue=int(teacher.queue),
    )


def build_targets(settings: Settings, device: torch.device | str = "cpu", *, on_device: bool = False) -> Targets:
    """Build the state of the targets at step 0; on_device as in `Targets`."""
    prototypes = int(settings.projector.prototypes)
    return Targets(compose_rules(settings), prototypes, name_projectors(settings), device, on_device=on_device)


def schedule_temperature(settings: Settings, step: int) -> float:
    """Return the schedule's tau_t at a step."""
    t = settings.teacher
    return teacher_temperature(
        step, settings.train.steps, start=t.temperature_start, end=t.temperature_end, warmup=t.temperature_warmup
    )


def group_parameters(student: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Divide the parameters into two groups for AdamW: with weight decay (`is_decayed`) and without."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        (decay if is_decayed(name, parameter) else plain).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def list_frozen(student: Network) -> list[nn.Parameter]:
    """List the parameters of the projectors' last layers, which are frozen in the first epoch [iBOT]."""
    return [p for projector in student.projectors.values() for p in projector.last_layer_parameters()]  # type: ignore[operator]


def measure_teacher(settings: Settings, step: int) -> Memory:
    """Compute the share of initial weights in the teacher after `step` steps, and its average age."""
    teacher = settings.teacher
    return measure_memory(list_momenta(settings.train.steps, float(teacher.momentum), float(teacher.momentum_end))[:step])


def list_untrained(settings: Settings) -> dict[str, str]:
    """List prefixes of student weights that receive no gradient from any loss, with the reason; they keep their initial values."""
    losses = settings.losses
    shape, semantic = describe_shapes(settings)
    reads = {"amip": STAGES, "gitd": STAGES, "ampd": find_unit_stage(shape.strides), "aitd": semantic.stage if semantic else 0}
    deepest = max(stage for name, stage in reads.items() if getattr(losses, name) > 0)
    untrained = {f"encoder.stages.{stage}.": f"no loss reads x{stage + 1}" for stage in range(deepest, STAGES)}
    if settings.model.semantic_attention and losses.aitd == 0:
        untrained["semantic_attention."] = "losses.aitd is 0"
    return untrained


def describe_encoder(settings: Settings, dataset: ViewDataset, step: int, weights: Literal["teacher", "student"]) -> EncoderConfig:
    """Return the description that is written beside the weights of an encoder, the teacher's or the student's."""
    shape, semantic = describe_shapes(settings)
    rows = {row.id: row for row in dataset.store.rows}
    seen = [rows[i] for i in dataset.usable]
    preparation = dataset.store.preparation
    memory = measure_teacher(settings, step) if weights == "teacher" else Memory(first_weights=0.0, age=0.0)
    return EncoderConfig(
        shape=shape,
        semantic=semantic,
        size=settings.size,
        method=settings.method,
        spacing=preparation.spacing,
        low=settings.view.low,
        high=settings.view.high,
        view=settings.view.side,
        crop_body=preparation.crop_body,
        mask_fill=settings.masking.mask_fill,
        step=step,
        seed=settings.seed,
        modalities=tuple(sorted({row.modality for row in seen})),
        scans_seen=tuple(sorted({row.content_hash for row in seen})),
        backbone=settings.model.backbone,
        weights=weights,
        first_weights=memory.first_weights,
        average_age=memory.age,
    )
