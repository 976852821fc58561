"""The settings of a pretraining run: one class per section, and for each field one sentence with its unit and source.

Sources: sections, figures and appendices are those of the paper; "[ours]" marks a choice of this project. `auto` is replaced by
`dagman.settings.resolution`, which reports its choice and the reason.
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
    """Base class of a section of the settings: immutable, and rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ViewSettings(Section):
    """The crops (views) given to the network."""

    side: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    """Side length of a view in voxels, a multiple of 32. App. A."""
    spacing: Annotated[float, Field(gt=0)] = 2.0
    """Voxel size in mm at which scans are prepared. App. A."""
    low: float = -1000.0
    """HU mapped to 0. [ours: covers both lung and soft tissue]"""
    high: float = 500.0
    """HU mapped to 1. [ours]"""
    box: Annotated[float, Field(ge=1)] = 4 / 3
    """Side length of the box from which both views are cropped, relative to that of a view; limits how little they overlap.
    [SMIT]"""
    modality: Literal["auto", "ct", "mr", "all"] = "auto"
    """Modality of the scans to train on; auto requires that the store holds only one. [ours]"""
    padding: Share = 0.5
    """Largest fraction of a view's side that may lie outside the scan; scans too small for this are excluded and listed. [ours]"""
    flip: Share = 0.0
    """Probability of flipping a view along each axis. Off, as in App. A."""
    intensity_scale: Share = 0.0
    """Maximum relative change of contrast. Off, as in App. A."""
    intensity_shift: Share = 0.0
    """Maximum shift of intensities in [0, 1]. Off, as in App. A."""
    noise: Share = 0.0
    """Standard deviation of Gaussian noise added to intensities in [0, 1]. Off, as in App. A."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g} HU) must lie below high ({self.high:g} HU)")
        return self

    @property
    def least(self) -> int:
        """Minimum number of voxels of a scan along each axis."""
        return round(self.side * (1 - self.padding))


class ModelSettings(Section):
    """The backbone and its semantic attention (docs/method.md, Shapes and Semantic attention)."""

    backbone: str = "swin"
    """Backbone network: swin, vit, resnet3d:18, resenc:16, monai-swin, or one that you registered. [ours]"""
    embed: Positive = 48
    """Embedding dimension of patch tokens (of all tokens in a ViT). App. A."""
    depths: tuple[Positive, Positive, Positive, Positive] = (2, 2, 8, 2)
    """Number of blocks in each stage (in a ViT, before each feature map). App. A."""
    heads: tuple[Positive, Positive, Positive, Positive] = (4, 4, 8, 16)
    """Number of attention heads in each stage (four equal numbers in a ViT). App. A."""
    window: Annotated[int, Field(ge=2)] = 4
    """Side length of an attention window in tokens. App. A."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of the MLPs, relative to the number of channels."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth rate of the student's last block (increasing linearly with depth). App. A."""
    semantic_attention: bool = True
    """Whether to use semantic attention: the [CLS] module on top of the encoder, or a ViT's own [CLS] token. Section 3.1."""
    sa_stage: Annotated[int, Field(ge=1, le=STAGES)] = 3
    """Stage whose output is the input of the semantic attention. Fig. 6."""
    sa_heads: Positive = 8
    """Number of heads in the semantic attention. [ours]"""
    sa_depth: Positive = 2
    """Number of blocks in the semantic attention. Section 3.1."""
    sa_position: Literal["none", "sincos"] = "none"
    """Position encoding of the semantic attention. [ours: none, as the position within a random crop carries no information]"""

    @property
    def own_cls(self) -> bool:
        """Whether the backbone has its own [CLS] token, so that no semantic attention module is built."""
        return self.backbone in OWN_CLS

    @property
    def fixed_sizes(self) -> bool:
        """Whether the backbone's name determines its sizes, so that the settings of a Swin's sizes have no effect."""
        return self.backbone.partition(":")[0] in FIXED_SIZES

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fixed_sizes:
            return self
        if self.own_cls:
            if len(set(self.heads)) > 1:
                raise ValueError(
                    f"heads must be four equal numbers for a {self.backbone}, not {list(self.heads)}; --size tiny-vit sets them"
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
    """The projection heads (docs/method.md, Heads)."""

    layers: Literal[1, 3] = 3
    """3: MLP with bottleneck and weight-normalised prototypes [iBOT]; 1: a single linear layer, as the paper's text suggests."""
    hidden: Positive = 2048
    """Hidden width of the MLP. [iBOT]"""
    bottleneck: Positive = 256
    """Width of the normalised bottleneck. [iBOT]"""
    prototypes: Positive | Auto = "auto"
    """Number of outputs K of each projector; auto: 1024 up to 16 views per step (recipe R), 8192 from 64 views [iBOT]."""


class MaskingSettings(Section):
    """Masking of the student's input (docs/method.md, Masking the student)."""

    kind: Annotated[str, BeforeValidator(check_masking)] = "attention-high"
    """How masked units are chosen. Section 3.1."""
    ratio: Share = 0.7
    """Masking ratio r, before hints are subtracted. Section 3.1."""
    hints: Share = 0.1
    """Fraction s of units that are left visible as hints, among the most attended; s < r. Section 3.1."""
    hint_pool: Share | None = None
    """Fraction of units from which hints are drawn, the most attended first; default s, which takes the most attended units.
    [AttMask]"""
    mask_fill: Literal["zero", "token"] = "zero"
    """What replaces a masked patch token: zero, or a learned mask token [SMIT]."""
    attention_from: Literal["clean", "noisy"] = "clean"
    """Teacher pass that provides the attention; noisy saves one forward pass. Fig. 1C."""

    @property
    def choice(self) -> MaskingChoice:
        """Properties of this kind of masking."""
        return MASKINGS[self.kind]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hints >= self.ratio:
            raise ValueError(f"hints ({self.hints:g}) must be below ratio ({self.ratio:g})")
        if self.hint_pool is not None and not self.hints <= self.hint_pool <= self.ratio:
            raise ValueError(f"hint_pool ({self.hint_pool:g}) must lie between hints ({self.hints:g}) and ratio ({self.ratio:g})")
        return self


class TeacherSettings(Section):
    """The noisy teacher and its targets (docs/method.md, Noisy teacher and Losses)."""

    noise: Share = 0.7
    """Fraction r_t of units dropped from the teacher's input, sampled anew for each view and step; 0 = clean teacher. Section
    3.2."""
    granularity: Literal["unit", "patch"] = "unit"
    """What is dropped: 16^3 units, or single 2^3 patch tokens. Fig. 1."""
    momentum: Share | Auto = "auto"
    """EMA momentum at the start; auto: 0.996 [iBOT], or less in short runs, to reach average_age."""
    momentum_end: Share | Auto = "auto"
    """EMA momentum at the end of a cosine schedule over all steps; auto: 1 [iBOT], or less if average_age would be exceeded."""
    average_age: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Average age of the teacher's weights at the end of the run, as a fraction of the run; target of the `auto` momenta. [ours]"""
    temperature: Literal["auto", "schedule", "entropy"] = "auto"
    """schedule: tau_t increases linearly [iBOT]; entropy: tau_t is solved for at each step to meet target_entropy [ours, recipe
    R]."""
    temperature_start: Annotated[float, Field(gt=0)] = 0.04
    """tau_t at the start of the schedule. [iBOT]"""
    temperature_end: Annotated[float, Field(gt=0)] = 0.07
    """tau_t after its warm-up. [iBOT]"""
    temperature_warmup: Share = 30 / 800
    """Fraction of the steps over which tau_t increases. [iBOT]"""
    target_entropy: Share = 0.5
    """Mean normalised entropy of the targets, H(P_t)/ln K, when temperature = entropy. [ours]"""
    centering: Literal["auto", "mean", "sinkhorn"] = "auto"
    """mean: EMA of the logits [iBOT]; sinkhorn: 3 Sinkhorn-Knopp iterations over the batch [SwAV]."""
    center_momentum: Share = 0.9
    """EMA momentum of the centres. [iBOT]"""
    queue: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Number of earlier views whose logits are included in Sinkhorn and in the solved tau_t, for AITD and GITD [SwAV]; 0 for
    none."""


class LossSettings(Section):
    """Weights of the four losses; a weight of 0 removes the loss and its head (docs/method.md, Losses)."""

    amip: Weight = 1.0
    """Weight of masked image prediction. App. A."""
    ampd: Weight = 0.1
    """Weight of masked patch distillation. App. A."""
    aitd: Weight = 0.1
    """Weight of image token ([CLS]) distillation. App. A."""
    gitd: Weight = 0.1
    """Weight of global image token distillation. App. A."""
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    """Student temperature tau_s. [iBOT]"""
    symmetric: bool = True
    """Whether the loss is symmetric, i.e. the student sees both views. [ours; as in SMIT]"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.amip + self.ampd + self.aitd + self.gitd == 0:
            raise ValueError("all weights are 0, so there is nothing to learn")
        return self


class OptimSettings(Section):
    """AdamW and its learning rate schedule (docs/method.md, Training)."""

    lr: Annotated[float, Field(gt=0)] | Auto = "auto"
    """Peak learning rate; auto: 3e-4 up to 16 views per step (recipe R), 8e-4 * sqrt(batch / 64) from 64 views [App. A]."""
    min_lr: Weight = 1e-6
    """Learning rate at the end of the cosine schedule. App. A."""
    warmup: Share = 80 / 800
    """Fraction of the steps used for learning rate warm-up. App. A."""
    weight_decay: Weight = 0.05
    """Weight decay; not applied to biases, norms, tokens and relative position bias tables."""
    clip: Annotated[float, Field(gt=0)] = 3.0
    """Maximum gradient norm (gradient clipping). [iBOT]"""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Second coefficient (beta2) of AdamW; beta1 is 0.9."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lr != "auto" and self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr:g}) must not exceed lr ({self.lr:g})")
        return self


class TrainSettings(Section):
    """The run: length, batch size, checkpoints and hardware."""

    recipe: Literal["auto", "paper", "R"] = "auto"
    """Source of `auto` values: paper, or recipe R, which is stable with few views per step (docs/method.md, Small runs)."""
    steps: Positive = 300
    """Number of optimiser steps; all schedules span the whole run."""
    batch: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    """Batch size: number of views per step, in pairs from the same scan."""
    micro_batch: Annotated[int, Field(ge=2, multiple_of=2)] | Auto = "auto"
    """Maximum number of views processed at once; gradients are accumulated over the parts of a step."""
    recompute: Annotated[int, Field(ge=0, le=STAGES)] = 0
    """Activation checkpointing: number of stages, from the first, recomputed in the backward pass (less memory, more time)."""
    skip_hidden: bool | Auto = "auto"
    """Whether block 1 computes only once what all hidden windows share; equal up to rounding; auto: for a Swin on a CPU. [ours]"""
    freeze_epochs: Weight = 1.0
    """Epochs (a run has 800) in which the projectors' last layers are frozen. [iBOT]"""
    checkpoint_every: Positive = 50
    """Number of steps between checkpoints."""
    keep_checkpoints: Positive = 2
    """Number of checkpoints to keep; older ones are deleted."""
    monitor_every: Positive = 25
    """Number of steps between evaluations on the fixed validation views."""
    monitor_views: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    """Number of fixed validation views."""
    track: Literal["none", "wandb", "mlflow"] = "none"
    """Where to log curves in addition to TensorBoard: W&B (offline) or MLflow, within the run's folder. [ours]"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the networks; losses, centres, softmax and EMA always use float32."""
    kernels: Literal["auto", "reference", "triton"] = "auto"
    """Implementation of the Swin blocks: PyTorch operations, or Triton kernels on a CUDA device."""
    compile: Literal["auto", "off", "on", "graphs"] = "auto"
    """Compilation of the encoders on a CUDA device; on: torch.compile; graphs: torch.compile with CUDA graphs."""
    read_after: Literal["auto", 0, 1] = "auto"
    """Delay, in steps, before losses are read from a CUDA device: 0 waits for each step, 1 reads them during the next step."""
    device: str = "auto"
    """auto, cpu, cuda, or cuda:N."""
    skips: Annotated[int, Field(ge=0)] = 3
    """Number of steps with a non-finite loss or gradient to skip (returning to the last checkpoint each time) before the run
    stops."""
    unreadable: Share = 0.1
    """Fraction of unreadable scans at which the run stops; a single one is always replaced."""
    rank_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which a rank that does not respond, or blocks the others, is reported and the run stops."""
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Number of data loader processes."""
    many_passes: bool = False
    """Allow runs that see each scan more than 10,000 times. [ours]"""


class Settings(Section):
    """All settings of one pretraining."""

    size: str = "tiny"
    """Size preset: tiny, small or paper; with the suffix -vit (plain ViT), -resnet or -resenc (CNNs) for other backbones."""
    method: str = "dagman"
    """Method preset (docs/method.md, Method presets)."""
    seed: int = 0
    """Random seed."""
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
        """Whether any loss needs targets from the teacher."""
        return self.losses.ampd + self.losses.aitd + self.losses.gitd > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is needed, either for targets or for attention."""
        return self.distils or self.masking.choice.needs_attention
