"""The Swin encoder (METHOD.md): a view to four feature maps, laid out like MONAI's `SwinTransformer(downsample="mergingv2")`.

Notation: B views, C channels, X Y Z sides of a view in voxels (or of a feature map), x y z sides of the grid of patch tokens,
L tokens of a grid, H heads, W windows, n tokens of a window, R residual branches (two per block).
Tokens are channels-last (B L C) throughout; feature maps are channels-first views of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dagman.errors import SettingsError
from dagman.model.backbone import Backbone, BackboneKind, Encoded, MaskFill, register_backbone
from dagman.model.linear import Linear, Mlp
from dagman.model.window_attention import LARGE, WINDOWS_AT_ONCE, WindowAttention
from dagman.model.windows import Triple, WindowPlan, plan_windows

AddAndNormalise = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SwinShape:
    """Sizes of a Swin encoder; the defaults are the paper's. Raises SettingsError for inconsistent sizes.

    Attributes:
        embed: Channels of a patch token; stage i (from 0) has embed * 2**i channels and outputs twice as many.
        depths, heads: Number of blocks and of attention heads in each stage.
        window, patch: Side of an attention window in tokens, and of a patch token in voxels.
        drop_path: Stochastic depth rate of the last block, the largest.
        mean, std: Used to standardise intensities in [0, 1].
    """

    embed: int = 48
    depths: tuple[int, ...] = (2, 2, 8, 2)
    heads: tuple[int, ...] = (4, 4, 8, 16)
    window: int = 4
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    in_channels: int = 1
    patch: int = 2
    mean: float = 0.45
    std: float = 0.35

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads):
            raise SettingsError(
                f"depths {self.depths} and heads {self.heads} differ in length", do="Give one of each for every stage"
            )
        if not 0 <= self.drop_path < 1:
            raise SettingsError(f"drop_path {self.drop_path} is not a rate", do="Give 0 or more, below 1")
        for stage, heads in enumerate(self.heads):
            if (self.embed << stage) % heads:
                raise SettingsError(f"{heads} heads do not divide the {self.embed << stage} channels of stage {stage + 1}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each feature map, starting with x1."""
        return tuple(self.embed << stage for stage in range(1, len(self.depths) + 1))

    @property
    def strides(self) -> tuple[int, ...]:
        """Side of a token of each feature map in voxels, starting with x1."""
        return tuple(self.patch << stage for stage in range(1, len(self.depths) + 1))

    @property
    def alignment(self) -> int:
        """Side of an attention window of the last stage in voxels; views that start at multiples of it have the same windows."""
        return self.window * self.patch << (len(self.depths) - 1)

    @property
    def branches(self) -> int:
        """Number R of residual branches that stochastic depth may drop, two per block."""
        return 2 * sum(self.depths)


@dataclass(frozen=True, kw_only=True, eq=False)
class StageAttention:
    """Window attention of a stage's last block, for monitors.

    Attributes:
        probabilities: Attention of each token of each window; rows sum to 1.
        positions: Centre of each token within its window, in voxels of the view.
        valid: False for padding; window m of all views uses row m mod W.
    """

    probabilities: Float[Tensor, "BW H n n"]
    positions: Float[Tensor, "n 3"]
    valid: Bool[Tensor, "W n"]


class SwinEncoder(Backbone):
    """Map views to maps x1 to x4, each after its stage's patch merging (METHOD, Shapes); masked tokens become zero or learned."""

    mean: Tensor
    std: Tensor

    def __init__(self, shape: SwinShape | None = None, *, mask_fill: MaskFill = "zero") -> None:
        super().__init__()
        self.shape = shape = shape or SwinShape()
        self.widths, self.strides, self.branches = shape.widths, shape.strides, shape.branches
        self.alignment = shape.alignment
        self.register_buffer("mean", torch.tensor(shape.mean))
        self.register_buffer("std", torch.tensor(shape.std))
        # A convolution whose stride equals its kernel size, as one matrix product that directly gives channels-last tokens.
        self.patch_projection = nn.Linear(shape.in_channels * shape.patch**3, shape.embed)
        self.mask_fill, self.skips_hidden = mask_fill, False
        self.mask_token = nn.Parameter(torch.zeros(shape.embed)) if mask_fill == "token" else None
        self.stages = nn.ModuleList(
            SwinStage(shape.embed << i, depth, heads, shape.window, shape.mlp_ratio)
            for i, (depth, heads) in enumerate(zip(shape.depths, shape.heads, strict=True))
        )

    def forward(
        self,
        view: Float[Tensor, "B channels X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
        visible: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Compute feature maps [x1, x2, x3, x4] without drawing random numbers; sides are padded at their far end if needed.

        Args:
            view: Views with intensities in [0, 1].
            hidden: True where masked, on the grid of patch tokens (sides of the view / 2, rounded up).
            drop: Uniform draws in [0, 1) for stochastic depth, a row per residual branch (see `scale_branches`); None: no drops.
            stages: Number of stages to run. Default: all. The teacher's attention needs none beyond its input.
            visible: Number of visible patch tokens in all views, if whole units are hidden; see `skip_hidden`.
        """
        scales = None if drop is None else self._scales(drop)
        skips = self.skips_hidden and hidden is not None and visible is not None
        if skips:
            tokens, grid = self._pass_first_block(view, hidden, visible, scales)
        else:
            tokens, grid = self._embed(view, hidden)
        in_parts = scales is None and tokens.shape[1] > LARGE and not torch.is_grad_enabled()
        features: list[Tensor] = []
        for number, stage in enumerate(self.stages[:stages]):
            if in_parts:
                # Later stages must not overwrite their input, which is among the features.
                tokens, grid = cast(SwinStage, stage).pass_in_parts(tokens if number == 0 else tokens.clone(), grid)
            else:
                tokens, grid = stage(tokens, grid, scales, first=1 if skips and number == 0 else 0)
            features.append(tokens.unflatten(1, grid).permute(0, 4, 1, 2, 3))
        return features

    def encode(
        self,
        view: Float[Tensor, "B channels X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
        visible: int | None = None,
    ) -> Encoded:
        """See `forward`."""
        return Encoded(maps=self(view, hidden, drop=drop, stages=stages, visible=visible))

    def skip_hidden(self) -> None:
        """See `Backbone.skip_hidden`."""
        if self.shape.patch != 2 or 8 % self.shape.window:
            what = f"windows of {self.shape.window} patch tokens do not lie in units of 8"
            raise SettingsError(what, where="train.skip_hidden", do="Leave it at false, or set model.window=4")
        self.skips_hidden = True

    def _pass_first_block(
        self, view: Tensor, hidden: Tensor | None, visible: int | None, scales: Iterator[Tensor] | None
    ) -> tuple[Tensor, Triple]:
        from dagman.model.hidden_windows import pass_first_block

        assert hidden is not None
        assert visible is not None
        patches, grid = self._cut(view)
        fill = patches.new_zeros(self.shape.embed) if self.mask_token is None or self.mask_fill == "zero" else self.mask_token
        block, project = cast(SwinStage, self.stages[0]).blocks[0], self.patch_projection
        window = self.shape.window
        return pass_first_block(patches, grid, hidden.flatten(1), visible, window, project, fill, block, scales), grid

    def layers(self) -> list[list[nn.Parameter]]:
        """List parameters of the patch projection (with the mask token), then of each block and each merging."""
        first = [*self.patch_projection.parameters(), *([self.mask_token] if self.mask_token is not None else [])]
        parts = [part for stage in self.stages for part in (*cast(SwinStage, stage).blocks, cast(SwinStage, stage).merging)]
        return [first, *(list(part.parameters()) for part in parts)]

    def recompute(self, stages: int) -> None:
        """See `Backbone.recompute`; gradients are bit-identical, as no random numbers are drawn."""
        for number, stage in enumerate(self.stages):
            cast(SwinStage, stage).recomputed = number < stages

    def use_kernels(self, kernels: str) -> None:
        """Compute blocks with "triton" kernels or the "reference", PyTorch's operations; results are equal up to rounding."""
        for stage in self.stages:
            for block in cast(SwinStage, stage).blocks:
                cast(SwinBlock, block).use_kernels(kernels)

    @torch.no_grad()
    def attention_of(self, view: Float[Tensor, "B channels X Y Z"]) -> list[StageAttention]:
        """Compute the window attention of each stage's last block, without gradients."""
        tokens, grid = self._embed(view, None)
        attentions = []
        for stage, stride in zip(self.stages, self.shape.strides, strict=True):
            attentions.append(cast(SwinStage, stage).attention_of(tokens, grid, voxels=stride // 2))
            tokens, grid = stage(tokens, grid, None)
        return attentions

    def _cut(self, view: Tensor) -> tuple[Tensor, Triple]:
        """Cut views into the standardised voxels of each patch token, B L P; also returns the grid."""
        patch = self.shape.patch
        # Pad with intensity 0 before standardising, so that exported weights, which include the standardisation, pad alike.
        view = F.pad(view, [n for side in reversed(view.shape[2:]) for n in (0, -side % patch)])
        B, C, X, Y, Z = view.shape
        grid = (X // patch, Y // patch, Z // patch)
        view = (view - self.mean) / self.std
        patches = view.reshape(B, C, grid[0], patch, grid[1], patch, grid[2], patch).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return patches.reshape(B, math.prod(grid), C * patch**3), grid

    def _embed(self, view: Tensor, hidden: Tensor | None) -> tuple[Tensor, Triple]:
        patches, grid = self._cut(view)
        tokens = self.patch_projection(patches)
        if hidden is not None:
            if hidden.shape[1:] != grid:
                raise ValueError(f"hidden has the grid {tuple(hidden.shape[1:])}, the view has {grid} patch tokens")
            masked = hidden.reshape(len(view), -1, 1)
            learned = self.mask_token if self.mask_fill == "token" else None
            fill = tokens.new_zeros(()) if learned is None else learned.to(tokens.dtype)
            tokens = torch.where(masked, fill, tokens)
        return tokens, grid

    def _scales(self, drop: Tensor) -> Iterator[Tensor]:
        if len(drop) != self.shape.branches:
            raise ValueError(f"drop has {len(drop)} rows, the encoder has {self.shape.branches} residual branches")
        return iter(scale_branches(drop, self.shape.drop_path)[:, :, None, None])


def scale_branches(drop: Float[Tensor, "R B"], rate: float) -> Float[Tensor, "R B"]:
    """Compute the factor of each residual branch and view: 0 if its uniform draw is below the block's rate, else 1 / (1 - rate).

    The mean factor is thus 1. Rates increase linearly from 0 in the first block to `rate` in the last; a block has two branches.
    """
    rates = torch.linspace(0, rate, len(drop) // 2, device=drop.device).repeat_interleave(2)[:, None]
    return (drop >= rates) / (1 - rates)


class SwinStage(nn.Module):
    """Blocks, every second of them with shifted windows, followed by patch merging."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(SwinBlock(dim, heads, window, mlp_ratio, shift=window // 2 * (i % 2)) for i in range(depth))
        self.merging = PatchMerging(dim)
        self.recomputed = False
        """Whether only the inputs of blocks are kept for the backward pass, which recomputes the blocks."""

    def forward(
        self, x: Float[Tensor, "B L C"], grid: Triple, scales: Iterator[Tensor] | None, first: int = 0
    ) -> tuple[Float[Tensor, "B l c"], Triple]:
        """Run the stage from block `first`; `scales` iterates over the factors of residual branches. Returns tokens and grid."""
        for block in self.blocks[first:]:
            x = self._recompute(block, x, grid, scales) if self.recomputed and torch.is_grad_enabled() else block(x, grid, scales)
        return self.merging(x, grid)

    @torch.no_grad()
    def pass_in_parts(self, x: Float[Tensor, "B L C"], grid: Triple) -> tuple[Float[Tensor, "B l c"], Triple]:
        """Like `forward`, for large views: overwrites the tokens, a few windows at a time, so that no second copy is held."""
        for block in self.blocks:
            cast(SwinBlock, block).pass_in_parts(x, grid)
        return self.merging.pass_in_parts(x, grid)

    def _recompute(self, block: nn.Module, x: Tensor, grid: Triple, scales: Iterator[Tensor] | None) -> Tensor:
        # The backward pass runs the block again, so take its two factors from the iterator only once.
        factors = None if scales is None else [next(scales), next(scales)]
        again = lambda tokens: block(tokens, grid, None if factors is None else iter(factors))  # noqa: E731
        return cast(Tensor, checkpoint(again, x, use_reentrant=False, preserve_rng_state=False))

    def attention_of(self, x: Float[Tensor, "B L C"], grid: Triple, voxels: int) -> StageAttention:
        """Compute the last block's attention; `voxels` is the side of a token of this stage in voxels."""
        for block in self.blocks[:-1]:
            x = block(x, grid, None)
        last = cast(SwinBlock, self.blocks[-1])
        plan = plan_windows(grid, self.window, last.shift, x.device)
        places = torch.cartesian_prod(*(torch.arange(w, device=x.device) for w in plan.window)).reshape(-1, 3)
        return StageAttention(
            probabilities=last.attention.probabilities(last.norm1(x), plan),
            positions=(places + 0.5) * voxels,
            valid=plan.valid,
        )


class SwinBlock(nn.Module):
    """Window attention and an MLP, each with a LayerNorm before it and a residual connection."""

    def __init__(self, dim: int, heads: int, window: int, mlp_ratio: float, *, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.add_and_normalise: AddAndNormalise | None = None
        """`kernels.layer_norm.add_and_normalise` if Triton kernels are used."""

    def use_kernels(self, kernels: str) -> None:
        """See `SwinEncoder.use_kernels`."""
        if kernels == "triton":
            from dagman.model.kernels.layer_norm import add_and_normalise
            from dagman.model.kernels.window_attention import attend_tokens

            self.add_and_normalise, self.attention.kernel = add_and_normalise, attend_tokens
        else:
            self.add_and_normalise = self.attention.kernel = None

    def forward(self, x: Float[Tensor, "B L C"], grid: Triple, scales: Iterator[Tensor] | None) -> Float[Tensor, "B L C"]:
        """Apply the block to tokens on a grid."""
        plan = plan_windows(grid, self.window, self.shift, x.device)
        if self.add_and_normalise is not None:
            return self._forward_fused(self.add_and_normalise, x, plan, scales)
        x = _add_branch(x, self.attention(self.norm1(x), plan), scales)
        return _add_branch(x, self.mlp(self.norm2(x)), scales)

    def pass_in_parts(self, x: Float[Tensor, "B L C"], grid: Triple) -> None:
        """Apply the block in place, bit-identical to `forward`; this is safe because each token belongs to only one window."""
        if self.add_and_normalise is not None or x.shape[1] <= LARGE // 8:
            x.copy_(self(x, grid, None))
            return
        plan = plan_windows(grid, self.window, self.shift, x.device, masks=False)
        places = plan.to_windows.view(-1, plan.places)
        for tokens in x:
            for first in range(0, len(places), WINDOWS_AT_ONCE):
                valid = plan.valid[first : first + WINDOWS_AT_ONCE].flatten()
                own = places[first : first + WINDOWS_AT_ONCE].flatten()[valid]
                normed = self.norm1(tokens[own])
                windows = normed.new_zeros(len(valid), normed.shape[-1])
                windows[valid] = normed
                attended = self.attention.attend_part(windows.unflatten(0, (-1, plan.places)), plan, first)
                tokens[own] += attended.flatten(0, 1)[valid]
            for few in tokens.split(LARGE // 16):
                few += self.mlp(self.norm2(few))

    def _forward_fused(
        self, add_and_normalise: AddAndNormalise, x: Tensor, plan: WindowPlan, scales: Iterator[Tensor] | None
    ) -> Tensor:
        """Like `forward`, with each norm, the addition before it and the cast after it fused into one kernel."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        first, second = self.norm1, self.norm2
        _, normed = add_and_normalise(x, None, None, first.weight, first.bias, first.eps, dtype)
        branch, scale = self.attention(normed, plan), None if scales is None else next(scales).flatten()
        x, normed = add_and_normalise(x, branch, scale, second.weight, second.bias, second.eps, dtype)
        return _add_branch(x, self.mlp(normed), scales)


class PatchMerging(nn.Module):
    """Concatenate 8 neighbours (Z fastest), LayerNorm, and linear layer 8C -> 2C; odd sides are zero-padded at the far end."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * dim)
        self.reduction = Linear(8 * dim, 2 * dim, bias=False)

    def forward(self, x: Float[Tensor, "B L C"], grid: Triple) -> tuple[Float[Tensor, "B l c"], Triple]:
        """Merge tokens; returns the tokens and their grid, whose sides are halved (rounded up)."""
        x, half = self._pair(x, grid)
        return self.reduction(self.norm(x.reshape(len(x), math.prod(half), 8 * x.shape[-1]))), half

    def pass_in_parts(self, x: Float[Tensor, "B L C"], grid: Triple) -> tuple[Float[Tensor, "B l c"], Triple]:
        """Like `forward`, bit-identical, but in slabs along X, because gathering the eight neighbours copies the tokens."""
        x, half = self._pair(x, grid)
        slabs = x.split(max(1, LARGE // 64 // math.prod(half[1:])), dim=1)
        return torch.cat([self.reduction(self.norm(slab.reshape(len(x), -1, 8 * x.shape[-1]))) for slab in slabs], dim=1), half

    def _pair(self, x: Tensor, grid: Triple) -> tuple[Tensor, Triple]:
        """Group neighbours: tokens of shape (B, *half the grid, 2, 2, 2, C), and the halved grid."""
        x = x.unflatten(1, grid)
        if any(side % 2 for side in grid):
            x = F.pad(x, (0, 0, 0, grid[2] % 2, 0, grid[1] % 2, 0, grid[0] % 2))
        B, X, Y, Z, C = x.shape
        half = (X // 2, Y // 2, Z // 2)
        return x.reshape(B, half[0], 2, half[1], 2, half[2], 2, C).permute(0, 1, 3, 5, 2, 4, 6, 7), half


def _build(shape: SwinShape, variant: str, mask_fill: MaskFill) -> SwinEncoder:
    return SwinEncoder(shape, mask_fill=mask_fill)


def _add_branch(x: Tensor, branch: Tensor, scales: Iterator[Tensor] | None) -> Tensor:
    return x + branch if scales is None else x + branch * next(scales).to(branch.dtype)


register_backbone("swin", BackboneKind(build=_build, mask_fills=("zero", "token")))
