"""The network of student and teacher: encoder, semantic attention, projectors, and the student's reconstruction head.

B views, C channels, N units, R masked units of all views in row order, K prototypes, x the patch-token grid.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dagman.method.masking import Grid, locate_units
from dagman.method.noise import PATCHES_PER_UNIT
from dagman.model import Encoded, Projector, ReconstructionHead, SemanticAttention, SwinShape, build_backbone
from dagman.model.backbone import UNIT, ClsBackbone, MaskFill


@dataclass(frozen=True, kw_only=True)
class SemanticShape:
    """Where the semantic attention stands and its size (METHOD, Semantic attention).

    depth: its blocks; 0 where the [CLS] token is the backbone's own, and its attention is that of the backbone's last block.
    """

    stage: int = 3
    heads: int = 8
    depth: int = 2
    position: Literal["none", "sincos"] = "none"


@dataclass(frozen=True, kw_only=True)
class ProjectorShape:
    """Size of the projectors, and which of them there are (METHOD, Heads)."""

    names: tuple[str, ...] = ("ampd", "aitd", "gitd")
    layers: int = 3
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 8192


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a network gives for B views: logits by loss (`ampd` R K, `aitd` and `gitd` B K), and the student's restoration."""

    projections: dict[str, Tensor]
    reconstruction: Float[Tensor, "B 1 X Y Z"] | None = None


class Network(nn.Module):
    """Student or teacher: they differ in the reconstruction head alone, which the teacher lacks."""

    def __init__(
        self,
        shape: SwinShape,
        semantic: SemanticShape | None,
        projectors: ProjectorShape,
        *,
        reconstruct: bool = True,
        mask_fill: MaskFill = "zero",
        backbone: str = "swin",
    ) -> None:
        super().__init__()
        self.semantic = semantic
        self.encoder = build_backbone(backbone, shape, mask_fill=mask_fill)
        widths = self.encoder.widths
        self.semantic_attention = None
        if semantic is not None and not self.encoder.own_cls:
            self.semantic_attention = SemanticAttention(
                widths[semantic.stage - 1], heads=semantic.heads, depth=semantic.depth, position=semantic.position
            )
        dims = {
            "ampd": widths[self.encoder.unit_stage - 1],
            "aitd": widths[semantic.stage - 1] if semantic else 0,
            "gitd": widths[3],
        }
        self.projectors = nn.ModuleDict(
            {
                name: Projector(
                    dims[name],
                    hidden=projectors.hidden,
                    bottleneck=projectors.bottleneck,
                    prototypes=projectors.prototypes,
                    layers=projectors.layers,
                )
                for name in projectors.names
            }
        )
        self.reconstruction = ReconstructionHead(widths[3], patch=self.encoder.strides[3]) if reconstruct else None

    def attend(self, view: Float[Tensor, "B 1 X Y Z"], dropped: Bool[Tensor, "B x y z"] | None = None) -> Float[Tensor, "B N"]:
        """Att (Eq. 1): the [CLS] query's attention to the N units, averaged over heads, in float32."""
        return self._average_heads(self.attend_heads(view, dropped))

    def attend_encoded(self, encoded: Encoded) -> Float[Tensor, "B N"]:
        """`attend` of what the encoder made of views, at least up to the stage the semantic attention reads."""
        semantic = self._require_semantic()
        if self.semantic_attention is None:
            grid = encoded.maps[semantic.stage - 1].shape[2:]
            return self._average_heads(cast(ClsBackbone, self.encoder).attend_encoded(encoded).unflatten(2, grid))
        return self._average_heads(_attend_map(self.semantic_attention, encoded.maps[semantic.stage - 1]))

    def attend_heads(
        self, view: Float[Tensor, "B 1 X Y Z"], dropped: Bool[Tensor, "B x y z"] | None = None
    ) -> Float[Tensor, "B H _ _ _"]:
        """The [CLS] query's attention in each head, on the grid of the stage it reads; raises ValueError without a [CLS] token."""
        semantic = self._require_semantic()
        if self.semantic_attention is None:
            stride = self.encoder.strides[semantic.stage - 1]
            grid = tuple(-(-side // stride) for side in view.shape[2:])
            return cast(ClsBackbone, self.encoder).attend(view, dropped).unflatten(2, grid)
        return _attend_map(self.semantic_attention, self.encoder(view, dropped, stages=semantic.stage)[semantic.stage - 1])

    def forward(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        blanked: Bool[Tensor, "B x y z"] | None = None,
        units: Bool[Tensor, "B N"] | None = None,
        drop_path: Float[Tensor, "L B"] | None = None,
        count: int | None = None,
    ) -> Outputs:
        """Logits (and the reconstruction) of views.

        Args:
            view: Intensities in [0, 1].
            blanked: Patch tokens that are masked (the student) or dropped by noise (the teacher). True = blanked.
            units: Units whose patch logits are wanted, usually the masked ones. True = wanted.
            drop_path: Uniform draws for stochastic depth; None for none.
            count: How many units of all views are wanted, where it is known; a device is then not waited for.
        """
        # What is blanked are then the patch tokens of the units, and no others.
        whole = None if units is None or count is None else units.numel() - count
        encoded = self.encode(view, blanked, drop_path, whole)
        restored = self.reconstruction(encoded.maps[3]) if self.reconstruction is not None else None
        return Outputs(projections=self.project(encoded, units, count), reconstruction=restored)

    def encode(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        blanked: Bool[Tensor, "B x y z"] | None = None,
        drop_path: Float[Tensor, "L B"] | None = None,
        visible: int | None = None,
    ) -> Encoded:
        """What the encoder makes of views; visible: units of all views that are not blanked, where whole ones are."""
        skipping = {"visible": visible * PATCHES_PER_UNIT**3} if visible is not None and self.encoder.skips_hidden else {}
        return self.encoder.encode(view, blanked, drop=drop_path, stages=self.deepest, **skipping)

    @property
    def deepest(self) -> int | None:
        """The last stage that a head or the semantic attention reads; None for all, or for a backbone with its own [CLS] token."""
        if self.encoder.own_cls or self.reconstruction is not None or "gitd" in self.projectors:
            return None
        return max(self.encoder.unit_stage if "ampd" in self.projectors else 1, self.semantic.stage if self.semantic else 1)

    def project(self, encoded: Encoded, units: Bool[Tensor, "B N"] | None = None, count: int | None = None) -> dict[str, Tensor]:
        """Logits by loss from what the encoder made of views: `ampd` of the `units` wanted, `aitd` and `gitd` of each view.

        count: As in `forward`.
        """
        projections, maps = {}, encoded.maps
        if "ampd" in self.projectors and units is not None:
            tokens = maps[self.encoder.unit_stage - 1].flatten(2).transpose(1, 2)
            projections["ampd"] = self.projectors["ampd"](tokens.flatten(0, 1).index_select(0, locate_units(units, count)))
        if "aitd" in self.projectors and self.semantic is not None:
            projections["aitd"] = self.projectors["aitd"](self.summarize(encoded))
        if "gitd" in self.projectors:
            projections["gitd"] = self.projectors["gitd"](maps[3].flatten(2).mean(dim=2))
        return projections

    def summarize(self, encoded: Encoded) -> Float[Tensor, "B C"]:
        """The [CLS] token of each view: the semantic attention's, or the backbone's own; raises ValueError without one."""
        semantic = self._require_semantic()
        if self.semantic_attention is not None:
            return self.semantic_attention.summarize(encoded.maps[semantic.stage - 1])
        if encoded.cls is None:
            raise ValueError("this backbone gave no [CLS] token")
        return encoded.cls

    def _require_semantic(self) -> SemanticShape:
        if self.semantic is None or (self.semantic_attention is None and not self.encoder.own_cls):
            raise ValueError("this network has no semantic attention")
        return self.semantic

    def _average_heads(self, heads: Float[Tensor, "B H _ _ _"]) -> Float[Tensor, "B N"]:
        stride = self.encoder.strides[self._require_semantic().stage - 1]
        return _fit_to_units(heads.flatten(2).float().mean(dim=1), tuple(heads.shape[2:]), stride)


def copy_student(student: Network) -> Network:
    """The teacher at the start: the student's weights, no reconstruction head, no gradient."""
    teacher = copy.deepcopy(student)
    teacher.reconstruction = None
    # What noise drops is zero (3.2), also where the student's masked tokens hold a learned one.
    teacher.encoder.mask_fill = "zero"
    return teacher.requires_grad_(False).eval()


def unit_grid(view_sides: tuple[int, ...]) -> Grid:
    """The grid of units of a view."""
    x, y, z = (side // UNIT for side in view_sides)
    return (x, y, z)


def _attend_map(semantic_attention: SemanticAttention, features: Float[Tensor, "B C x y z"]) -> Float[Tensor, "B H _ _ _"]:
    return semantic_attention.attend(features).unflatten(2, features.shape[2:])


def _fit_to_units(attention: Float[Tensor, "B n"], grid: tuple[int, ...], stride: int) -> Float[Tensor, "B N"]:
    # A finer stage's tokens are summed within a unit; a coarser one's are shared out among its units.
    volume = attention.unflatten(1, grid)
    if stride < UNIT:
        factor = UNIT // stride
        volume = torch.nn.functional.avg_pool3d(volume, factor) * factor**3
    elif stride > UNIT:
        for axis in (1, 2, 3):
            volume = volume.repeat_interleave(2, dim=axis) / 2
    return volume.flatten(1)
