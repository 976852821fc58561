"""The settings of a pretraining: one class a section, one sentence a field, with its unit and its source.

Sources: `METHOD` sections are those of the method's description in `docs/method.md`; "[ours]" is a choice of this project.
`auto` is replaced by `dagman.settings.resolution`, which says what it chose and why.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dagman.settings.choices import FIXED_SIZES, MASKINGS, OWN_CLS, MaskingChoice, check_masking

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]
Auto = Literal["auto"]
STAGES = 4
UNIT = 16
"""Side of a unit in voxels: masks and attention live on this grid (METHOD, Shapes)."""


class Section(BaseModel):
    """A section: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ViewSettings(Section):
    """The crops given to the network."""

    side: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    """Side of a view in voxels, a multiple of 32. App. A."""
    spacing: Annotated[float, Field(gt=0)] = 2.0
    """Voxel size in mm at which scans are prepared. App. A."""
    low: float = -1000.0
    """HU that becomes 0. [ours: lung and soft tissue both]"""
    high: float = 500.0
    """HU that becomes 1. [ours]"""
    box: Annotated[float, Field(ge=1)] = 4 / 3
    """Side of the box both views are cut from, in view sides, so that they overlap. [SMIT]"""
    modality: Literal["auto", "ct", "mr", "all"] = "auto"
    """Scans that views are cut from; auto: the store's, which must then be of one modality. [ours]"""
    padding: Share = 0.5
    """Largest share of a view's side that may lie outside the scan; smaller scans are left out by name. [ours]"""
    flip: Share = 0.0
    """Chance of mirroring a view along each axis. Off as in App. A."""
    intensity_scale: Share = 0.0
    """Largest relative change of contrast. Off as in App. A."""
    intensity_shift: Share = 0.0
    """Largest shift of the unit range. Off as in App. A."""
    noise: Share = 0.0
    """Standard deviation of noise added to the unit range. Off as in App. A."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g} HU) must lie below high ({self.high:g} HU)")
        return self

    @property
    def least(self) -> int:
        """Voxels that a scan must have along each axis."""
        return round(self.side * (1 - self.padding))


class ModelSettings(Section):
    """The backbone and its semantic attention (METHOD, Shapes and Semantic attention)."""

    backbone: str = "swin"
    """Network that makes the feature maps: swin, vit, resnet3d:18, resenc:16, monai-swin, or one that you registered. [ours]"""
    embed: Positive = 48
    """Channels of a patch token, and of all tokens of a vit. App. A."""
    depths: tuple[Positive, Positive, Positive, Positive] = (2, 2, 8, 2)
    """Blocks of each stage; of a vit, blocks up to each feature map. App. A."""
    heads: tuple[Positive, Positive, Positive, Positive] = (4, 4, 8, 16)
    """Attention heads of each stage; of a vit, four alike. App. A."""
    window: Annotated[int, Field(ge=2)] = 4
    """Side of an attention window in tokens. App. A."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of a block's MLP, in channels."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth of the student's last block. App. A."""
    semantic_attention: bool = True
    """Whether the [CLS] module stands on the encoder, or a vit's own [CLS] token is read. 3.1."""
    sa_stage: Annotated[int, Field(ge=1, le=STAGES)] = 3
    """Stage whose output the semantic attention reads. Fig. 6."""
    sa_heads: Positive = 8
    """Heads of the semantic attention. [ours]"""
    sa_depth: Positive = 2
    """Blocks of the semantic attention. 3.1."""
    sa_position: Literal["none", "sincos"] = "none"
    """Position code of the semantic attention. [ours: a crop's place says nothing]"""

    @property
    def own_cls(self) -> bool:
        """Whether the backbone has a [CLS] token of its own, so that no semantic attention is built."""
        return self.backbone in OWN_CLS

    @property
    def fixed_sizes(self) -> bool:
        """Whether the backbone's name states its sizes, so that those of a Swin mean nothing."""
        return self.backbone.partition(":")[0] in FIXED_SIZES

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fixed_sizes:
            return self
        if self.own_cls:
            if len(set(self.heads)) > 1:
                raise ValueError(
                    f"heads must be four alike for a {self.backbone}, not {list(self.heads)}; --size tiny-vit sets all"
                )
            if self.embed % self.heads[0]:
                raise ValueError(f"heads = {self.heads[0]} must divide embed = {self.embed}")
            return self
        for stage, heads in enumerate(self.heads):
            if self.embed * 2**stage % heads:
                raise ValueError(f"heads[{stage}] = {heads} must divide the {self.embed * 2**stage} channels of stage {stage + 1}")
        if self.semantic_attention and self.embed * 2**self.sa_stage % self.sa_heads:
            raise ValueError(
                f"sa_heads = {self.sa_heads} must divide the {self.embed * 2**self.sa_stage} channels of x{self.sa_stage}"
            )
        return self


class ProjectorSettings(Section):
    """The projection heads (METHOD, Heads)."""

    layers: Literal[1, 3] = 3
    """3: MLP, bottleneck, weight-normalised prototypes [iBOT]; 1: a plain linear projection, the paper's words."""
    hidden: Positive = 2048
    """Hidden width of the MLP. [iBOT]"""
    bottleneck: Positive = 256
    """Width of the normalised bottleneck. [iBOT]"""
    prototypes: Positive | Auto = "auto"
    """Outputs K of each projector: 1024 up to 16 views a step (recipe R), 8192 from 64 on [iBOT]."""


class MaskingSettings(Section):
    """What is hidden from the student (METHOD, Masking the student)."""

    kind: Annotated[str, BeforeValidator(check_masking)] = "attention-high"
    """Which units are masked. 3.1."""
    ratio: Share = 0.7
    """Share r of units masked before hints are given back. 3.1."""
    hints: Share = 0.1
    """Share s of units given back, out of the most attended; s < r. 3.1."""
    hint_pool: Share | None = None
    """Share of units the hints are drawn from; default s, the most attended themselves. [AttMask]"""
    mask_fill: Literal["zero", "token"] = "zero"
    """What stands in a masked patch token: zero, or a learned token [SMIT]."""
    attention_from: Literal["clean", "noisy"] = "clean"
    """Teacher pass the attention is read from; noisy saves a pass. Fig. 1C."""

    @property
    def choice(self) -> MaskingChoice:
        """What is known of this kind of masking."""
        return MASKINGS[self.kind]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hints >= self.ratio:
            raise ValueError(f"hints ({self.hints:g}) must be below ratio ({self.ratio:g})")
        if self.hint_pool is not None and not self.hints <= self.hint_pool <= self.ratio:
            raise ValueError(f"hint_pool ({self.hint_pool:g}) must lie between hints ({self.hints:g}) and ratio ({self.ratio:g})")
        return self


class TeacherSettings(Section):
    """The noisy teacher and its targets (METHOD, Noisy teacher and Losses)."""

    noise: Share = 0.7
    """Share r_t of units dropped from the teacher's input, drawn anew each view and step; 0 = clean. 3.2."""
    granularity: Literal["unit", "patch"] = "unit"
    """What is dropped: 16^3 units, or single 2^3 patch tokens. Fig. 1."""
    momentum: Share | Auto = "auto"
    """EMA momentum at the start: 0.996 [iBOT], or less in runs too short for it, so that the average age is met."""
    momentum_end: Share | Auto = "auto"
    """EMA momentum at the end, by a cosine over all steps: 1 [iBOT], or less where the average age would exceed average_age."""
    average_age: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Average age of the weights in the teacher at the end that `auto` momenta meet, in shares of the run. [ours]"""
    temperature: Literal["auto", "schedule", "entropy"] = "auto"
    """schedule: tau_t rises linearly [iBOT]; entropy: tau_t is solved to meet target_entropy [ours, recipe R]."""
    temperature_start: Annotated[float, Field(gt=0)] = 0.04
    """tau_t at the start of the schedule. [iBOT]"""
    temperature_end: Annotated[float, Field(gt=0)] = 0.07
    """tau_t after its warm-up. [iBOT]"""
    temperature_warmup: Share = 30 / 800
    """Share of the steps in which tau_t rises. [iBOT]"""
    target_entropy: Share = 0.5
    """Mean H(P_t)/ln K that the solved tau_t meets. [ours]"""
    centering: Literal["auto", "mean", "sinkhorn"] = "auto"
    """EMA centre [iBOT], or 3 Sinkhorn-Knopp rounds over the step [SwAV]."""
    center_momentum: Share = 0.9
    """EMA momentum of the centres. [iBOT]"""
    queue: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Earlier views whose logits Sinkhorn and the solved tau_t of AITD and GITD see as well [SwAV]; 0 for none."""


class LossSettings(Section):
    """Weights of the four losses; 0 leaves a loss and its head out (METHOD, Losses)."""

    amip: Weight = 1.0
    """Weight of masked image prediction. App. A."""
    ampd: Weight = 0.1
    """Weight of masked patch distillation. App. A."""
    aitd: Weight = 0.1
    """Weight of image token ([CLS]) distillation. App. A."""
    gitd: Weight = 0.1
    """Weight of global image token distillation. App. A."""
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    """tau_s. [iBOT]"""
    symmetric: bool = True
    """Whether the student sees both views. [ours; SMIT does]"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.amip + self.ampd + self.aitd + self.gitd == 0:
            raise ValueError("all weights are 0, so there is nothing to learn")
        return self


class OptimSettings(Section):
    """AdamW and its schedule (METHOD, Training)."""

    lr: Annotated[float, Field(gt=0)] | Auto = "auto"
    """Peak learning rate: 3e-4 up to 16 views a step (recipe R), 8e-4 * sqrt(batch / 64) from 64 on [App. A]."""
    min_lr: Weight = 1e-6
    """Learning rate at the end of the cosine. App. A."""
    warmup: Share = 80 / 800
    """Share of the steps in which lr rises. App. A."""
    weight_decay: Weight = 0.05
    """Weight decay, not on biases, norms, tokens and bias tables."""
    clip: Annotated[float, Field(gt=0)] = 3.0
    """Largest norm of the gradient. [iBOT]"""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Second AdamW coefficient; the first is 0.9."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lr != "auto" and self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr:g}) must not exceed lr ({self.lr:g}), which it ends")
        return self


class TrainSettings(Section):
    """The run: its length, batch, checkpoints and machine."""

    recipe: Literal["auto", "paper", "R"] = "auto"
    """What `auto` values become: the paper's, or recipe R, the values that hold with few views a step (METHOD, Small runs)."""
    steps: Positive = 300
    """Optimiser steps of the whole run; schedules span them."""
    batch: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    """Views a step; they come in pairs of one scan."""
    micro_batch: Annotated[int, Field(ge=2, multiple_of=2)] | Auto = "auto"
    """Views held at once at most; the gradients of a step are accumulated over parts of nearly equal size."""
    recompute: Annotated[int, Field(ge=0, le=STAGES)] = 0
    """Stages, from the first on, whose activations are computed again in the backward pass: less memory, more time."""
    skip_hidden: bool = False
    """Whether the first block computes once what is alike in all masked or dropped windows: equal to rounding. [ours]"""
    freeze_epochs: Weight = 1.0
    """Epochs (800 a run) in which the projectors' last layers stay frozen. [iBOT]"""
    checkpoint_every: Positive = 50
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept; older ones are removed."""
    monitor_every: Positive = 25
    """Steps between measurements on the fixed validation views."""
    monitor_views: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    """Fixed validation views."""
    track: Literal["none", "wandb", "mlflow"] = "none"
    """Where curves go beside TensorBoard: W&B, offline, or MLflow, both within the run's folder. [ours]"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the networks; losses, centres, softmax and EMA stay float32."""
    kernels: Literal["auto", "reference", "triton"] = "auto"
    """What Swin's blocks are computed by: torch's own operations, or Triton kernels on a CUDA device."""
    compile: Literal["auto", "off", "on", "graphs"] = "auto"
    """Whether encoders are compiled on a CUDA device: on by torch.compile; graphs: replayed as CUDA graphs besides."""
    read_after: Literal["auto", 0, 1] = "auto"
    """Steps after which a CUDA device's losses are read: 0 waits for each step, 1 reads them while the next is computed."""
    device: str = "auto"
    """auto, cpu, cuda, or cuda:N."""
    skips: Annotated[int, Field(ge=0)] = 3
    """Steps whose loss or gradient is not finite that a run skips, each time going back to its last checkpoint; then it ends."""
    unreadable: Share = 0.1
    """Share of the scans that may turn out unreadable before the run ends; a single one is always replaced."""
    rank_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which a rank that does not answer, or is stuck while the others wait for it, is named and the run ends."""
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Loader processes."""
    many_passes: bool = False
    """Begin even if each scan is seen more than 10,000 times. [ours]"""


class Settings(Section):
    """All settings of one pretraining."""

    size: str = "tiny"
    """Size preset: tiny, small or paper, and the same with -vit (a plain ViT), -resnet and -resenc (CNNs)."""
    method: str = "dagman"
    """Method preset (METHOD, Method presets)."""
    seed: int = 0
    """Seed of every draw."""
    view: ViewSettings = ViewSettings()
    model: ModelSettings = ModelSettings()
    projector: ProjectorSettings = ProjectorSettings()
    masking: MaskingSettings = MaskingSettings()
    teacher: TeacherSettings = TeacherSettings()
    losses: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        attends = self.model.semantic_attention
        if not attends and self.masking.choice.needs_attention:
            raise ValueError(f'masking.kind = "{self.masking.kind}" needs model.semantic_attention = true')
        if not attends and self.losses.aitd > 0:
            raise ValueError("losses.aitd needs model.semantic_attention = true; set losses.aitd = 0")
        units = (self.view.side // UNIT) ** 3
        if math.floor(self.masking.ratio * units + 1e-9) <= math.floor(self.masking.hints * units + 1e-9):
            raise ValueError(
                f"masking.ratio = {self.masking.ratio:g} hides none of the {units} units of view.side = {self.view.side}"
            )
        if self.train.micro_batch != "auto" and self.train.micro_batch > self.train.batch:
            raise ValueError(f"train.micro_batch = {self.train.micro_batch} is larger than train.batch = {self.train.batch}")
        return self

    @property
    def distils(self) -> bool:
        """Whether any loss needs a teacher's targets."""
        return self.losses.ampd + self.losses.aitd + self.losses.gitd > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is kept at all: for targets, or for attention."""
        return self.distils or self.masking.choice.needs_attention
