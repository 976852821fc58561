"""The plain vision transformer (METHOD.md): a view to tokens of 16^3 voxels and a [CLS] token.

Notation: B views, C channels, X Y Z sides of a view in voxels, x y z sides of its grid of tokens, N = x * y * z tokens, T = N + 1
including the [CLS] token, which comes last, H heads, R residual branches (two per block).
The blocks are those of the semantic attention, so that both networks share the code for Eq. 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dagman.errors import SettingsError
from dagman.model.backbone import UNIT, BackboneKind, ClsBackbone, Encoded, MaskFill, register_backbone
from dagman.model.semantic_attention import GlobalBlock
from dagman.model.swin import StageAttention, SwinShape, scale_branches
from dagman.model.windows import Triple


@dataclass(frozen=True)
class ViTShape(SwinShape):
    """Sizes of a plain ViT, in the terms of a Swin encoder; the defaults are the paper's. `window` has no effect.

    Attributes:
        embed: Number of channels of all blocks.
        depths: Number of blocks before each of the four feature maps, counted from the previous map.
        heads: Number of attention heads, the same for all stages.
        patch: Side of a token in voxels.
        view: Side in voxels of the views that position embeddings are learned for.

    Raises:
        SettingsError: If the sizes are inconsistent.
    """

    embed: int = 768
    depths: tuple[int, ...] = (3, 3, 3, 3)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    patch: int = UNIT
    view: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.heads)) > 1:
            what = f"a ViT has the same number of heads in every stage, not {self.heads}"
            raise SettingsError(what, do="Give four equal numbers")
        if self.embed % self.heads[0]:
            raise SettingsError(f"{self.heads[0]} heads do not divide the {self.embed} channels of a ViT")
        if self.view % self.patch:
            raise SettingsError(f"the side of a view, {self.view} voxels, is not a multiple of a token's {self.patch}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each feature map, all equal."""
        return (self.embed,) * len(self.depths)

    @property
    def strides(self) -> tuple[int, ...]:
        """Side of a token of each feature map in voxels, all equal."""
        return (self.patch,) * len(self.depths)

    @property
    def alignment(self) -> int:
        """Side of a token in voxels."""
        return self.patch


class ViTEncoder(ClsBackbone):
    """Map views to a [CLS] token and four feature maps on the same grid, by default after every quarter of the blocks.

    The tokens of the last block are not normalised, because all heads of the method begin with a norm. Position embeddings are
    learned for views with sides of `shape.view` voxels and interpolated linearly for others; the [CLS] token has none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: ViTShape | None = None, *, mask_fill: MaskFill = "zero") -> None:
        super().__init__()
        self.shape = shape = shape or ViTShape()
        self.widths, self.strides, self.branches = shape.widths, shape.strides, shape.branches
        self.alignment, self.view = shape.alignment, shape.view
        self.register_buffer("mean", torch.tensor(shape.mean))
        self.register_buffer("std", torch.tensor(shape.std))
        self.patch_projection = nn.Linear(shape.in_channels * shape.patch**3, shape.embed)
        self.mask_fill = mask_fill
        self.mask_token = nn.Parameter(torch.zeros(shape.embed)) if mask_fill == "token" else None
        self.cls = nn.Parameter(torch.empty(shape.embed))
        self.positions = nn.Parameter(torch.empty(shape.embed, *(shape.view // shape.patch,) * 3))
        for learned in (self.cls, self.positions):
            nn.init.trunc_normal_(learned, std=0.02)
        self.stages = nn.ModuleList(
            nn.ModuleList(GlobalBlock(shape.embed, shape.heads[0], shape.mlp_ratio) for _ in range(depth)) for depth in shape.depths
        )
        self.recomputed = 0

    @property
    def load(self) -> int:
        """See `Backbone.load`. A block keeps 16 values per token and channel, a Swin 15 values per voxel and channel."""
        return max(1, round(self.shape.embed * sum(self.shape.depths) * 16 / (15 * self.shape.patch**3)))

    def forward(
        self,
        view: Float[Tensor, "B channels X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Compute feature maps [x1, x2, x3, x4], all on the grid of tokens; sides are padded at their far end if needed.

        Args:
            view: Views with intensities in [0, 1].
            hidden: True where masked, on the grid of patch tokens of 2^3 voxels; a token is masked if all of its voxels are.
            drop: Uniform draws for stochastic depth, as in `SwinEncoder.forward`.
            stages: Number of maps to compute. Default: all.
        """
        return self.encode(view, hidden, drop, stages).maps

    def encode(
        self,
        view: Float[Tensor, "B channels X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> Encoded:
        """Compute the feature maps as `forward` does, and the [CLS] token after, and all tokens before, the last block that ran."""
        z, grid = self._embed(view, hidden)
        scales = None if drop is None else self._scales(drop)
        entering, maps = z, []
        for number, blocks in enumerate(self.stages[:stages]):
            for block in cast(nn.ModuleList, blocks):
                entering, z = z, self._run(cast(GlobalBlock, block), z, scales, number < self.recomputed)
            maps.append(z[:, :-1].transpose(1, 2).unflatten(2, grid))
        return Encoded(maps=maps, cls=z[:, -1], entering=entering)

    def attend(
        self, view: Float[Tensor, "B channels X Y Z"], hidden: Bool[Tensor, "B x y z"] | None = None
    ) -> Float[Tensor, "B H N"]:
        """Compute the [CLS] token's attention to the N tokens in the last block (Eq. 1), without running that block's remainder."""
        z, _ = self._embed(view, hidden)
        for block in self._blocks()[:-1]:
            z = block(z)
        return self._blocks()[-1].attend_from_cls(z)

    def attend_encoded(self, encoded: Encoded) -> Float[Tensor, "B H N"]:
        """Compute the same as `attend` from the outputs of `encode`; raises ValueError if `encode` did not run the last block."""
        if encoded.entering is None or len(encoded.maps) < len(self.stages):
            raise ValueError("the last block was not run")
        return self._blocks()[-1].attend_from_cls(encoded.entering)

    def layers(self) -> list[list[nn.Parameter]]:
        """List parameters of the patch projection (with the [CLS] token, positions and mask token), then of each block."""
        learned = [self.cls, self.positions, *([self.mask_token] if self.mask_token is not None else [])]
        return [[*self.patch_projection.parameters(), *learned], *(list(block.parameters()) for block in self._blocks())]

    def recompute(self, stages: int) -> None:
        """See `Backbone.recompute`; gradients are bit-identical, as no random numbers are drawn."""
        self.recomputed = stages

    @torch.no_grad()
    def attention_of(self, view: Float[Tensor, "B channels X Y Z"]) -> list[StageAttention]:
        """Compute the attention among the view's tokens, without [CLS], in each stage's last block; the view is a single window."""
        z, grid = self._embed(view, None)
        places = torch.cartesian_prod(*(torch.arange(side, device=z.device) for side in grid)).reshape(-1, 3)
        valid = torch.ones(1, len(places), dtype=torch.bool, device=z.device)
        attentions = []
        for blocks in self.stages:
            for block in cast(nn.ModuleList, blocks):
                entering, z = z, block(z)
            last = cast(GlobalBlock, cast(nn.ModuleList, blocks)[-1])
            attentions.append(
                StageAttention(
                    probabilities=last.probabilities(entering[:, :-1]), positions=(places + 0.5) * self.shape.patch, valid=valid
                )
            )
        return attentions

    def fit_positions(self, positions: Float[Tensor, "C x y z"]) -> Float[Tensor, "C X Y Z"]:
        """Interpolate position embeddings learned for views of another size to this network's grid."""
        sides = (self.shape.view // self.shape.patch,) * 3
        return interpolate_positions(positions, sides)

    def _blocks(self) -> list[GlobalBlock]:
        return [cast(GlobalBlock, block) for blocks in self.stages for block in cast(nn.ModuleList, blocks)]

    def _run(self, block: GlobalBlock, z: Tensor, scales: Iterator[Tensor] | None, again: bool) -> Tensor:
        # The backward pass may run the block again, so take its two factors from the iterator only once.
        factors = None if scales is None else (next(scales), next(scales))
        if again and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, z, factors, use_reentrant=False, preserve_rng_state=False))
        return cast(Tensor, block(z, factors))

    def _embed(self, view: Tensor, hidden: Tensor | None) -> tuple[Tensor, Triple]:
        patch = self.shape.patch
        # Pad with intensity 0 before standardising, as in the Swin.
        view = F.pad(view, [n for side in reversed(view.shape[2:]) for n in (0, -side % patch)])
        B, C, X, Y, Z = view.shape
        grid = (X // patch, Y // patch, Z // patch)
        view = (view - self.mean) / self.std
        patches = view.reshape(B, C, grid[0], patch, grid[1], patch, grid[2], patch).permute(0, 2, 4, 6, 1, 3, 5, 7)
        tokens = self.patch_projection(patches.reshape(B, -1, C * patch**3))
        if hidden is not None:
            learned = self.mask_token if self.mask_fill == "token" else None
            fill = tokens.new_zeros(()) if learned is None else learned.to(tokens.dtype)
            tokens = torch.where(self._find_masked(hidden, grid)[..., None], fill, tokens)
        # Added after masking, because the positions of masked tokens are known.
        tokens = tokens + interpolate_positions(self.positions, grid).flatten(1).T.to(tokens.dtype)
        return torch.cat([tokens, self.cls.to(tokens.dtype).expand(B, 1, -1)], dim=1), grid

    def _find_masked(self, hidden: Tensor, grid: Triple) -> Tensor:
        """Find masked tokens (B N): those whose patch tokens within the view are all masked."""
        factor = self.shape.patch // 2
        wanted = tuple(side * factor for side in grid)
        missing = [whole - side for whole, side in zip(wanted, hidden.shape[1:], strict=True)]
        if any(not 0 <= count < factor for count in missing):
            raise ValueError(f"hidden has the grid {tuple(hidden.shape[1:])}, the view has {wanted} patch tokens at most")
        hidden = F.pad(hidden, [n for count in reversed(missing) for n in (0, count)], value=True)
        x, y, z = grid
        cells = hidden.reshape(-1, x, factor, y, factor, z, factor).permute(0, 1, 3, 5, 2, 4, 6)
        return cells.flatten(4).all(dim=-1).flatten(1)

    def _scales(self, drop: Tensor) -> Iterator[Tensor]:
        if len(drop) != self.branches:
            raise ValueError(f"drop has {len(drop)} rows, the encoder has {self.branches} residual branches")
        return iter(scale_branches(drop, self.shape.drop_path)[:, :, None, None])


def interpolate_positions(positions: Float[Tensor, "C x y z"], sides: Triple) -> Float[Tensor, "C X Y Z"]:
    """Interpolate position embeddings linearly to another grid, treating them as cells that tile the view.

    Returns the same tensor if the grid is the same.
    """
    if tuple(positions.shape[1:]) == tuple(sides):
        return positions
    return F.interpolate(positions[None].float(), size=tuple(sides), mode="trilinear", align_corners=False)[0].to(positions.dtype)


def _build(shape: SwinShape, variant: str, mask_fill: MaskFill) -> ViTEncoder:
    if not isinstance(shape, ViTShape):
        raise TypeError("a ViT is built from a ViTShape")
    return ViTEncoder(shape, mask_fill=mask_fill)


register_backbone("vit", BackboneKind(build=_build, mask_fills=("zero", "token"), shape=ViTShape, token=UNIT))
