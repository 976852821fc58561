"""The network of student and teacher: encoder, semantic attention, projectors, and the student's reconstruction head.

B views, C channels, N units, R masked units of all views in row order, K prototypes, x the patch-token grid.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dagman.method.masking import Grid, locate_units
from dagman.model import Projector, ReconstructionHead, SemanticAttention, SwinShape, build_backbone
from dagman.model.backbone import MaskFill

UNIT = 16
"""Side of a unit in voxels."""
UNIT_STAGE = 3
"""Stage whose tokens are the units."""


@dataclass(frozen=True, kw_only=True)
class SemanticShape:
    """Where the semantic attention stands and its size (METHOD, Semantic attention)."""

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
        if semantic is not None:
            self.semantic_attention = SemanticAttention(
                widths[semantic.stage - 1], heads=semantic.heads, depth=semantic.depth, position=semantic.position
            )
        dims = {"ampd": widths[UNIT_STAGE - 1], "aitd": widths[semantic.stage - 1] if semantic else 0, "gitd": widths[3]}
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
        self.reconstruction = ReconstructionHead(widths[3]) if reconstruct else None

    def attend(self, view: Float[Tensor, "B 1 X Y Z"], dropped: Bool[Tensor, "B x y z"] | None = None) -> Float[Tensor, "B N"]:
        """Att (Eq. 1): the [CLS] query's attention to the N units, averaged over heads, in float32."""
        if self.semantic is None or self.semantic_attention is None:
            raise ValueError("this network has no semantic attention")
        return self.attend_stages(self.encoder(view, dropped, stages=self.semantic.stage))

    def attend_stages(self, stages: list[Float[Tensor, "B _ _ _ _"]]) -> Float[Tensor, "B N"]:
        """`attend` from feature maps that are there already, x1 first, at least up to the stage the semantic attention reads."""
        if self.semantic is None or self.semantic_attention is None:
            raise ValueError("this network has no semantic attention")
        features = stages[self.semantic.stage - 1]
        attention = self.semantic_attention.attend(features).float().mean(dim=1)
        return _fit_to_units(attention, tuple(features.shape[2:]), self.semantic.stage)

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
        stages = self.encoder(view, blanked, drop=drop_path)
        restored = self.reconstruction(stages[3]) if self.reconstruction is not None else None
        return Outputs(projections=self.project(stages, units, count), reconstruction=restored)

    def project(
        self, stages: list[Float[Tensor, "B _ _ _ _"]], units: Bool[Tensor, "B N"] | None = None, count: int | None = None
    ) -> dict[str, Tensor]:
        """Logits by loss from feature maps [x1, x2, x3, x4]: `ampd` of the `units` wanted, `aitd` and `gitd` of each view.

        count: As in `forward`.
        """
        projections = {}
        if "ampd" in self.projectors and units is not None:
            tokens = stages[UNIT_STAGE - 1].flatten(2).transpose(1, 2)
            projections["ampd"] = self.projectors["ampd"](tokens.flatten(0, 1).index_select(0, locate_units(units, count)))
        if "aitd" in self.projectors and self.semantic is not None and self.semantic_attention is not None:
            projections["aitd"] = self.projectors["aitd"](self.semantic_attention.summarize(stages[self.semantic.stage - 1]))
        if "gitd" in self.projectors:
            projections["gitd"] = self.projectors["gitd"](stages[3].flatten(2).mean(dim=2))
        return projections


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


def _fit_to_units(attention: Float[Tensor, "B n"], grid: tuple[int, ...], stage: int) -> Float[Tensor, "B N"]:
    # A finer stage's tokens are summed within a unit; a coarser one's are shared out among its units.
    volume = attention.unflatten(1, grid)
    if stage < UNIT_STAGE:
        factor = 2 ** (UNIT_STAGE - stage)
        volume = torch.nn.functional.avg_pool3d(volume, factor) * factor**3
    elif stage > UNIT_STAGE:
        for axis in (1, 2, 3):
            volume = volume.repeat_interleave(2, dim=axis) / 2
    return volume.flatten(1)
