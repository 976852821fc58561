"""The network that turns views into feature maps: what one offers, and those there are, by name.

Letters: B views, C channels, X Y Z sides of a view in voxels, R residual branches that stochastic depth may drop.

A backbone is added by writing a `Backbone` and registering how it is built; it can then be pretrained (`model.backbone`), is read
back from its encoder folder, and takes part in every task.
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
"""Voxels along a token of each feature map, but for a plain transformer's: crops and decoders rely on them."""
UNIT = 16
"""Voxels along the side of a unit of the method."""


class Encoded(NamedTuple):
    """What a backbone makes of views: the feature maps, and of one with its own [CLS] token that token after its last block.

    entering: the tokens that entered the last block, the [CLS] token last, of which its attention is computed.
    """

    maps: list[Float[Tensor, "B _ _ _ _"]]
    cls: Float[Tensor, "B C"] | None = None
    entering: Float[Tensor, "B T C"] | None = None


class Backbone(nn.Module):
    """Views to four feature maps x1..x4.

    widths: channels of each map. strides: voxels along a token of each map. branches: residual branches that stochastic depth
    may drop (R), 0 for none. mask_fill: what stands in a masked patch token, "zero" or a learned "token".
    alignment: a part of a larger view has that view's features, away from its ends, if it starts at a multiple of so many voxels.
    own_cls: whether it has a [CLS] token of its own, as a `ClsBackbone`, and so needs no semantic attention.
    skips_hidden: whether `skip_hidden` was called; `encode` then takes `visible`, how many patch tokens of all views are not
    hidden, where those of whole units are.
    view: side of the views that its positions are learned for; 0 for a backbone whose features do not depend on the view's size.
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
        """Feature maps of views with intensities in [0, 1]; nothing here draws a random number.

        hidden: True = masked, on the grid of patch tokens of 2^3 voxels. drop: uniform draws in [0, 1) for stochastic depth.
        stages: how many maps are wanted, all by default.
        """

    def encode(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> Encoded:
        """`forward`, with the [CLS] token of a backbone that has one of its own."""
        return Encoded(maps=self(view, hidden, drop=drop, stages=stages))

    @property
    def unit_stage(self) -> int:
        """See `find_unit_stage`."""
        return find_unit_stage(self.strides)

    @property
    def load(self) -> int:
        """What a voxel of a view costs in memory, in channels of a Swin's patch token."""
        return self.widths[0] // 2

    def recompute(self, stages: int) -> None:
        """Compute the activations of the first `stages` stages again in the backward pass: less memory, more time.

        Raises SettingsError where the backbone cannot.
        """
        if stages:
            raise SettingsError("this backbone keeps all activations", where="train.recompute", do="Leave it at 0")

    def skip_hidden(self) -> None:
        """Compute once for each view what is alike in all hidden windows: the same numbers to rounding.

        Raises SettingsError where the backbone cannot.
        """
        raise SettingsError("this backbone computes all tokens", where="train.skip_hidden", do="Leave it at false")

    def use_kernels(self, kernels: str) -> None:
        """Compute by "triton" kernels or by the "reference"; a backbone without kernels of its own has the reference alone."""
        del kernels

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """All parameters, layer by layer from the input on, so that fine-tuning can give each layer its own learning rate."""

    def attention_of(self, view: Float[Tensor, "B 1 X Y Z"]) -> list[StageAttention]:
        """The window attention of each stage, for monitors; empty without any."""
        return []


class ClsBackbone(Backbone):
    """A backbone with a [CLS] token of its own, such as a ViT, whose attention masks; `encode` gives the token."""

    own_cls = True

    @abstractmethod
    def attend(self, view: Float[Tensor, "B 1 X Y Z"], hidden: Bool[Tensor, "B x y z"] | None = None) -> Float[Tensor, "B H N"]:
        """What the [CLS] token attends to (Eq. 1); rows sum to at most 1."""

    @abstractmethod
    def attend_encoded(self, encoded: Encoded) -> Float[Tensor, "B H N"]:
        """`attend` of what `encode` gave."""


@dataclass(frozen=True, kw_only=True)
class BackboneKind:
    """How a kind of backbone is built, and whether it can be pretrained.

    Attributes:
        build: From sizes, the variant (what follows the colon in its name), and the fill of masked tokens.
        mask_fills: Fills of masked patch tokens that it knows; empty where it takes no masks, and so cannot be pretrained.
        no_masks: Why it takes none.
        variants: What may follow the colon in its name; "" where the name may stand alone.
        baselines: Sizes of the variants that the tasks take as fresh baselines, such as "18" of `resnet3d:18`.
        shape: Class of its sizes; None for SwinShape.
        token: Voxels along the side of what a mask hides at least.
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
"""Every kind of backbone by its name; see `register_backbone`."""


def register_backbone(name: str, kind: BackboneKind) -> None:
    """Add a kind of backbone; a name taken is an error, so that two packages cannot mean different networks by it."""
    if name in BACKBONES:
        raise ValueError(f"the backbone {name!r} is registered already")
    BACKBONES[name] = kind


def find_backbone(name: str) -> BackboneKind:
    """The kind that a name such as "swin" or "resnet3d:18" belongs to; raises EncoderError for an unknown one."""
    head, _, variant = name.partition(":")
    kind = BACKBONES.get(head)
    if kind is None or variant not in kind.variants:
        raise EncoderError(f"there is no backbone {name!r}", do=f"Use one of {', '.join(list_backbones(head))}")
    return kind


def list_backbones(head: str = "") -> list[str]:
    """Names of all backbones with their variants; those of one kind where `head` is its name."""
    kinds = {head: BACKBONES[head]} if head in BACKBONES else BACKBONES
    return [f"{name}:{variant}".removesuffix(":") for name, kind in kinds.items() for variant in kind.variants]


def build_backbone(name: str, shape: SwinShape, *, mask_fill: MaskFill = "zero") -> Backbone:
    """A backbone by its name, with fresh weights drawn from torch's generator.

    Raises EncoderError for an unknown name, MissingExtraError where its library is not installed.
    """
    return find_backbone(name).build(shape, name.partition(":")[2], mask_fill)


def find_unit_stage(strides: tuple[int, ...]) -> int:
    """The deepest map, from 1, whose tokens are the method's units of 16^3 voxels: x3 of a Swin, x4 of a plain ViT."""
    return max((number for number, stride in enumerate(strides, start=1) if stride == UNIT), default=3)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to biases, norms, tokens, positions and bias tables (METHOD, Training).

    The one rule of pretraining, fine-tuning and segmentation. name: as `named_parameters` gives it.
    """
    return parameter.ndim > 1 and "bias" not in name and not name.endswith(("cls", "mask_token", "positions"))


def normalise_features(features: list[Float[Tensor, "B _ _ _ _"]]) -> list[Float[Tensor, "B _ _ _ _"]]:
    """Each token of each map to mean 0 and variance 1 over its channels, as MONAI's SwinUNETR reads them."""
    return [F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1) for x in features]
