"""The network of student and teacher: encoder, semantic attention, projectors, and the student's reconstruction head.

Notation: B views, C channels, N units, R masked units over all views in row order, K prototypes; x y z is the patch-token grid.
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
    """Position and size of the semantic attention module (METHOD, Semantic attention).

    Attributes:
        stage: Stage of the encoder whose tokens it reads.
        heads: Number of attention heads.
        depth: Number of blocks; 0 if the backbone has its own [CLS] token, whose attention in the last block is then used.
        position: Position encoding.
    """

    stage: int = 3
    heads: int = 8
    depth: int = 2
    position: Literal["none", "sincos"] = "none"


@dataclass(frozen=True, kw_only=True)
class ProjectorShape:
    """Names and size of the projectors (METHOD, Heads)."""

    names: tuple[str, ...] = ("ampd", "aitd", "gitd")
    layers: int = 3
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 8192


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Outputs for B views: logits by loss (`ampd` R K, `aitd` and `gitd` B K), and the student's reconstruction."""

    projections: dict[str, Tensor]
    reconstruction: Float[Tensor, "B 1 X Y Z"] | None = None


class Network(nn.Module):
    """The student's or the teacher's network; only the student has a reconstruction head."""

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
        """Compute Att (Eq. 1): the [CLS] query's attention to the N units, averaged over heads, in float32."""
        return self._average_heads(self.attend_heads(view, dropped))

    def attend_encoded(self, encoded: Encoded) -> Float[Tensor, "B N"]:
        """Like `attend`, from encoded views; they must include the stage that the semantic attention reads."""
        semantic = self._require_semantic()
        if self.semantic_attention is None:
            grid = encoded.maps[semantic.stage - 1].shape[2:]
            return self._average_heads(cast(ClsBackbone, self.encoder).attend_encoded(encoded).unflatten(2, grid))
        return self._average_heads(_attend_map(self.semantic_attention, encoded.maps[semantic.stage - 1]))

    def attend_heads(
        self, view: Float[Tensor, "B 1 X Y Z"], dropped: Bool[Tensor, "B x y z"] | None = None
    ) -> Float[Tensor, "B H _ _ _"]:
        """Compute the [CLS] query's attention in each head, on the grid of the stage that it reads.

        Raises:
            ValueError: The network has no [CLS] token.
        """
        semantic = self._require_semantic()
        if self.semantic_attention is None:
            stride = self.encoder.strides[semantic.stage - 1]
            grid = tuple(-(-side // stride) for side in view.shape[2:])
            return cast(ClsBackbone, self.encoder).attend(view, dropped).unflatten(2, grid)
        encoded = self.encoder.encode(view, dropped, stages=semantic.stage)
        return _attend_map(self.semantic_attention, encoded.maps[semantic.stage - 1])

    def forward(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        blanked: Bool[Tensor, "B x y z"] | None = None,
        units: Bool[Tensor, "B N"] | None = None,
        drop_path: Float[Tensor, "L B"] | None = None,
        count: int | None = None,
    ) -> Outputs:
        """Compute the logits of views, and the student's reconstruction.

        Args:
            view: Intensities in [0, 1].
            blanked: Patch tokens that are masked (student) or dropped by noise (teacher). True = blanked.
            units: Units whose patch logits are computed, usually the masked ones. True = computed.
            drop_path: Uniform draws for stochastic depth; None disables it.
            count: Number of True in `units`, if known; saves waiting for the device. The blanked tokens must then be those of
                `units`.
        """
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
        """Encode views. visible: number of units over all views that are not blanked, if whole units are blanked."""
        skipping = {"visible": visible * PATCHES_PER_UNIT**3} if visible is not None and self.encoder.skips_hidden else {}
        return self.encoder.encode(view, blanked, drop=drop_path, stages=self.deepest, **skipping)

    @property
    def deepest(self) -> int | None:
        """Last stage that is needed by a head or the semantic attention; None for all stages."""
        if self.encoder.own_cls or self.reconstruction is not None or "gitd" in self.projectors:
            return None
        return max(self.encoder.unit_stage if "ampd" in self.projectors else 1, self.semantic.stage if self.semantic else 1)

    def project(self, encoded: Encoded, units: Bool[Tensor, "B N"] | None = None, count: int | None = None) -> dict[str, Tensor]:
        """Compute logits by loss from encoded views: `ampd` for the given units, `aitd` and `gitd` for each view.

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
        """Return the [CLS] token of each view, from the semantic attention or from the backbone itself.

        Raises:
            ValueError: The network has no [CLS] token.
        """
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
    """Create the teacher from the student: the same weights, no reconstruction head, no gradients."""
    teacher = copy.deepcopy(student)
    teacher.reconstruction = None
    # The teacher's dropped patches are zero (3.2), even if the student fills masked ones with a learned token.
    teacher.encoder.mask_fill = "zero"
    return teacher.requires_grad_(False).eval()


def unit_grid(view_sides: tuple[int, ...]) -> Grid:
    """Return the grid of units of a view with these sides, in voxels."""
    x, y, z = (side // UNIT for side in view_sides)
    return (x, y, z)


def _attend_map(semantic_attention: SemanticAttention, features: Float[Tensor, "B C x y z"]) -> Float[Tensor, "B H _ _ _"]:
    return semantic_attention.attend(features).unflatten(2, features.shape[2:])


def _fit_to_units(attention: Float[Tensor, "B n"], grid: tuple[int, ...], stride: int) -> Float[Tensor, "B N"]:
    # Tokens finer than a unit are summed within it; a coarser token is divided evenly among its units.
    volume = attention.unflatten(1, grid)
    if stride < UNIT:
        factor = UNIT // stride
        volume = torch.nn.functional.avg_pool3d(volume, factor) * factor**3
    elif stride > UNIT:
        for axis in (1, 2, 3):
            volume = volume.repeat_interleave(2, dim=axis) / 2
    return volume.flatten(1)
