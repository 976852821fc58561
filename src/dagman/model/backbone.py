"""Interface and registry of backbones, the networks that turn views into feature maps.

Notation: B views, C channels, X Y Z sides of a view in voxels, R residual branches that stochastic depth may drop.

To add a backbone, subclass `Backbone` and register how to build it. It can then be pretrained (`model.backbone`), loaded from its
encoder folder, and used in every task.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dagman.errors import EncoderError, SettingsError

if TYPE_CHECKING:
    from dagman.model.swin import StageAttention, SwinShape

MaskFill = Literal["zero", "token"]
STRIDES = (4, 8, 16, 32)
"""Side of a token of each feature map in voxels, except for plain transformers; crops and decoders rely on it."""
UNIT = 16
"""Side of the method's units in voxels."""


class Encoded(NamedTuple):
    """Outputs of a backbone.

    Attributes:
        maps: Feature maps x1, x2, ...
        cls: [CLS] token after the last block, if the backbone has its own.
        entering: Input tokens of the last block, the [CLS] token last, from which its attention is computed.
    """

    maps: list[Float[Tensor, "B _ _ _ _"]]
    cls: Float[Tensor, "B C"] | None = None
    entering: Float[Tensor, "B T C"] | None = None


class Backbone(nn.Module):
    """Base class of networks that map views to four feature maps x1 to x4.

    Attributes:
        widths: Channels of each map.
        strides: Side of a token of each map in voxels.
        branches: Number R of residual branches that stochastic depth may drop; 0 for none.
        mask_fill: What replaces a masked patch token, "zero" or a learned "token".
        alignment: A crop that starts at a multiple of this many voxels of a larger view has the same features as the view, except
            near the crop's borders.
        own_cls: Whether it has its own [CLS] token (see `ClsBackbone`), and therefore needs no semantic attention.
        view: Side in voxels of the views that its position embeddings are learned for; 0 if it has none.
        skips_hidden: Whether `skip_hidden` was called. `encode` then accepts `visible`, the number of visible patch tokens in all
            views, provided that whole units are hidden.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...] = STRIDES
    branches: int = 0
    mask_fill: MaskFill = "zero"
    alignment: int = STRIDES[-1]
    own_cls: bool = False
    view: int = 0
    skips_hidden: bool = False

    @abstractmethod
    def forward(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Compute feature maps without drawing random numbers.

        Args:
            view: Views with intensities in [0, 1].
            hidden: True where masked, on the grid of patch tokens of 2^3 voxels.
            drop: Uniform draws in [0, 1) for stochastic depth; None for no stochastic depth.
            stages: Number of maps to compute. Default: all.
        """

    def encode(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> Encoded:
        """Compute the feature maps as `forward` does, and the [CLS] token if the backbone has its own."""
        return Encoded(maps=self(view, hidden, drop=drop, stages=stages))

    @property
    def unit_stage(self) -> int:
        """Number of the map whose tokens are the method's units; see `find_unit_stage`."""
        return find_unit_stage(self.strides)

    @property
    def load(self) -> int:
        """Memory used per voxel of a view, expressed as the number of channels of a Swin's patch token."""
        return self.widths[0] // 2

    def recompute(self, stages: int) -> None:
        """Recompute the activations of the first `stages` stages in the backward pass, which saves memory but takes longer.

        Raises:
            SettingsError: If the backbone does not support it.
        """
        if stages:
            raise SettingsError("this backbone cannot recompute activations", where="train.recompute", do="Leave it at 0")

    def skip_hidden(self) -> None:
        """Compute once per view what all hidden windows share; results are equal up to rounding.

        Raises:
            SettingsError: If the backbone does not support it.
        """
        raise SettingsError("this backbone cannot skip hidden tokens", where="train.skip_hidden", do="Leave it at false")

    def use_kernels(self, kernels: str) -> None:
        """Use "triton" kernels or the "reference" implementation. Backbones without kernels always use the reference."""
        del kernels

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """List all parameters by layer, starting at the input, so that fine-tuning can use a learning rate per layer."""

    def attention_of(self, view: Float[Tensor, "B 1 X Y Z"]) -> list[StageAttention]:
        """Compute the window attention of each stage, for monitors; empty if the backbone has none."""
        return []


class ClsBackbone(Backbone):
    """Base class of backbones with their own [CLS] token, such as a ViT, whose attention guides the masking."""

    own_cls = True

    @abstractmethod
    def attend(self, view: Float[Tensor, "B 1 X Y Z"], hidden: Bool[Tensor, "B x y z"] | None = None) -> Float[Tensor, "B H N"]:
        """Compute the attention of the [CLS] token to the N units for each of H heads (Eq. 1); rows sum to at most 1."""

    @abstractmethod
    def attend_encoded(self, encoded: Encoded) -> Float[Tensor, "B H N"]:
        """Compute the same as `attend` from the outputs of `encode`."""


@dataclass(frozen=True, kw_only=True)
class BackboneKind:
    """Describe how a kind of backbone is built, and whether it can be pretrained.

    Attributes:
        build: Builds it from its sizes, its variant (the part of the name after the colon), and the fill of masked tokens.
        mask_fills: Supported fills of masked patch tokens; empty if it does not support masks and so cannot be pretrained.
        no_masks: The reason why it does not support masks.
        variants: Allowed variants; "" allows the name without a colon.
        baselines: Sizes of variants that tasks offer as randomly initialised baselines, such as "18" of `resnet3d:18`.
        shape: Class of its sizes; None for SwinShape.
        token: Side in voxels of the smallest region that a mask can hide.
        least_view: Side in voxels of the smallest views that it can be pretrained on.
    """

    build: Callable[[SwinShape, str, MaskFill], Backbone]
    mask_fills: tuple[MaskFill, ...] = ()
    no_masks: str = ""
    variants: tuple[str, ...] = ("",)
    baselines: Mapping[str, SwinShape] = field(default_factory=dict)
    shape: type[SwinShape] | None = None
    token: int = 2
    least_view: int = 32


BACKBONES: dict[str, BackboneKind] = {}
"""All kinds of backbones by name; see `register_backbone`."""


def register_backbone(name: str, kind: BackboneKind) -> None:
    """Register a kind of backbone; raises ValueError for a name in use, so that a name never refers to two networks."""
    if name in BACKBONES:
        raise ValueError(f"the backbone {name!r} is already registered")
    BACKBONES[name] = kind


def find_backbone(name: str) -> BackboneKind:
    """Find the kind of a backbone by a name such as "swin" or "resnet3d:18"; raises EncoderError if it is unknown."""
    head, _, variant = name.partition(":")
    kind = BACKBONES.get(head)
    if kind is None or variant not in kind.variants:
        raise EncoderError(f"there is no backbone {name!r}", do=f"Use one of {', '.join(list_backbones(head))}")
    return kind


def list_backbones(head: str = "") -> list[str]:
    """List the names of all backbones with their variants, or only of the kind named `head` if there is one."""
    kinds = {head: BACKBONES[head]} if head in BACKBONES else BACKBONES
    return [f"{name}:{variant}".removesuffix(":") for name, kind in kinds.items() for variant in kind.variants]


def build_backbone(name: str, shape: SwinShape, *, mask_fill: MaskFill = "zero") -> Backbone:
    """Build a backbone by name, randomly initialised from torch's global generator.

    Raises:
        EncoderError: If the name is unknown.
        MissingExtraError: If the library that it needs is not installed.
    """
    return find_backbone(name).build(shape, name.partition(":")[2], mask_fill)


def find_unit_stage(strides: tuple[int, ...]) -> int:
    """Find the number, from 1, of the deepest map whose tokens are the method's units of 16^3 voxels: 3 for a Swin, 4 for a ViT."""
    return max((number for number, stride in enumerate(strides, start=1) if stride == UNIT), default=3)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Check whether weight decay applies: to matrices, but not to biases, norms, tokens, positions and bias tables.

    Pretraining, fine-tuning and segmentation all use this rule (METHOD, Training). `name` is the name from `named_parameters`.
    """
    return parameter.ndim > 1 and "bias" not in name and not name.endswith(("cls", "mask_token", "positions"))


def normalise_features(features: list[Float[Tensor, "B _ _ _ _"]]) -> list[Float[Tensor, "B _ _ _ _"]]:
    """Normalise each token of each map to mean 0 and variance 1 over its channels, as MONAI's SwinUNETR does."""
    return [F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1) for x in features]
