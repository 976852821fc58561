"""The plain vision transformer of METHOD.md: a view to tokens of 16^3 voxels, a [CLS] token of its own among them.

Letters: B views, C channels, X Y Z sides of a view in voxels, x y z sides of its grid of tokens, N = x * y * z tokens, T = N + 1
with the [CLS] token, which is the last, H heads, R residual branches (two a block).
The blocks are those of the semantic attention, so that Eq. 1 is computed by the same lines for both networks.
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
    """The sizes of a plain ViT, in the terms of a Swin encoder; the defaults are the paper's.

    embed: channels, the same throughout. depths: blocks up to each of the four feature maps. heads: attention heads, alike in all
    stages. view: side of the views that positions are learned for. `window` means nothing here.
    """

    embed: int = 768
    depths: tuple[int, ...] = (3, 3, 3, 3)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    patch: int = UNIT
    view: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.heads)) > 1:
            raise SettingsError(f"a ViT has as many heads in every stage, not {self.heads}", do="Give four alike")
        if self.embed % self.heads[0]:
            raise SettingsError(f"{self.heads[0]} heads do not divide the {self.embed} channels of a ViT")
        if self.view % self.patch:
            raise SettingsError(f"a view of {self.view} voxels is not a multiple of a token's {self.patch}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each feature map: one number."""
        return (self.embed,) * len(self.depths)

    @property
    def strides(self) -> tuple[int, ...]:
        """Voxels along the side of a token: one number."""
        return (self.patch,) * len(self.depths)

    @property
    def alignment(self) -> int:
        """Voxels along a token."""
        return self.patch


class ViTEncoder(ClsBackbone):
    """A view to four feature maps of one grid, each after a quarter of the blocks, and to a [CLS] token.

    The last block's tokens are not normalised: every head of the method begins with a norm. Positions are learned for views of
    `shape.view` voxels, and linearly interpolated for others; the [CLS] token has none.
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
        """See `Backbone.load`; of what a block keeps of a token, 16 values a channel, and a Swin 15 values a channel and voxel."""
        return max(1, round(self.shape.embed * sum(self.shape.depths) * 16 / (15 * self.shape.patch**3)))

    def forward(
        self,
        view: Float[Tensor, "B channels X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Feature maps [x1, x2, x3, x4], all on the grid of tokens; sides that do not divide are padded at their far end.

        hidden: True = masked, on the grid of patch tokens of 2^3 voxels; a token is masked where all of it is. drop, stages: as in
        `SwinEncoder.forward`.
        """
        return self.encode(view, hidden, drop, stages).maps

    def encode(
        self,
        view: Float[Tensor, "B channels X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> Encoded:
        """`forward`, with the [CLS] token after the last block that was run, and the tokens that entered that block."""
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
        """The [CLS] row of the last block's attention without its own entry (Eq. 1); that block itself is not run."""
        z, _ = self._embed(view, hidden)
        for block in self._blocks()[:-1]:
            z = block(z)
        return self._blocks()[-1].attend_from_cls(z)

    def attend_encoded(self, encoded: Encoded) -> Float[Tensor, "B H N"]:
        """`attend` of what `encode` gave."""
        if encoded.entering is None or len(encoded.maps) < len(self.stages):
            raise ValueError("the last block was not run")
        return self._blocks()[-1].attend_from_cls(encoded.entering)

    def layers(self) -> list[list[nn.Parameter]]:
        """The patch projection with [CLS], positions and mask token, then each block."""
        learned = [self.cls, self.positions, *([self.mask_token] if self.mask_token is not None else [])]
        return [[*self.patch_projection.parameters(), *learned], *(list(block.parameters()) for block in self._blocks())]

    def recompute(self, stages: int) -> None:
        """See `Backbone.recompute`; the gradients are the same bits, as nothing here draws."""
        self.recomputed = stages

    @torch.no_grad()
    def attention_of(self, view: Float[Tensor, "B channels X Y Z"]) -> list[StageAttention]:
        """The attention among the tokens of the view, its one window, in each stage's last block; the [CLS] token is left out."""
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
        """Positions learned for views of another side, interpolated to the grid of this network's own."""
        sides = (self.shape.view // self.shape.patch,) * 3
        return interpolate_positions(positions, sides)

    def _blocks(self) -> list[GlobalBlock]:
        return [cast(GlobalBlock, block) for blocks in self.stages for block in cast(nn.ModuleList, blocks)]

    def _run(self, block: GlobalBlock, z: Tensor, scales: Iterator[Tensor] | None, again: bool) -> Tensor:
        # The backward pass may run the block again, so its two factors are taken from the iterator once, here.
        factors = None if scales is None else (next(scales), next(scales))
        if again and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, z, factors, use_reentrant=False, preserve_rng_state=False))
        return cast(Tensor, block(z, factors))

    def _embed(self, view: Tensor, hidden: Tensor | None) -> tuple[Tensor, Triple]:
        patch = self.shape.patch
        # Padding is intensity 0 before standardisation, as in the Swin.
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
        # After the mask: where a masked token stands is known.
        tokens = tokens + interpolate_positions(self.positions, grid).flatten(1).T.to(tokens.dtype)
        return torch.cat([tokens, self.cls.to(tokens.dtype).expand(B, 1, -1)], dim=1), grid

    def _find_masked(self, hidden: Tensor, grid: Triple) -> Tensor:
        """Which tokens (B N) are masked: those all of whose patch tokens are, as far as the view reaches."""
        factor = self.shape.patch // 2
        wanted = tuple(side * factor for side in grid)
        missing = [whole - side for whole, side in zip(wanted, hidden.shape[1:], strict=True)]
        if any(not 0 <= one < factor for one in missing):
            raise ValueError(f"hidden has the grid {tuple(hidden.shape[1:])}, the view has {wanted} patch tokens at most")
        hidden = F.pad(hidden, [n for one in reversed(missing) for n in (0, one)], value=True)
        x, y, z = grid
        cells = hidden.reshape(-1, x, factor, y, factor, z, factor).permute(0, 1, 3, 5, 2, 4, 6)
        return cells.flatten(4).all(dim=-1).flatten(1)

    def _scales(self, drop: Tensor) -> Iterator[Tensor]:
        if len(drop) != self.branches:
            raise ValueError(f"drop has {len(drop)} rows, the encoder has {self.branches} residual branches")
        return iter(scale_branches(drop, self.shape.drop_path)[:, :, None, None])


def interpolate_positions(positions: Float[Tensor, "C x y z"], sides: Triple) -> Float[Tensor, "C X Y Z"]:
    """Positions on another grid, linearly, as cells that tile the view; the same ones where the grid is the same."""
    if tuple(positions.shape[1:]) == tuple(sides):
        return positions
    return F.interpolate(positions[None].float(), size=tuple(sides), mode="trilinear", align_corners=False)[0].to(positions.dtype)


def _build(shape: SwinShape, variant: str, mask_fill: MaskFill) -> ViTEncoder:
    if not isinstance(shape, ViTShape):
        raise TypeError("a ViT is built from a ViTShape")
    return ViTEncoder(shape, mask_fill=mask_fill)


register_backbone("vit", BackboneKind(build=_build, mask_fills=("zero", "token"), shape=ViTShape, token=UNIT))
