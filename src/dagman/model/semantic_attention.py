"""Semantic attention (paper 3.1, Eq. 1): a [CLS] token that attends to every unit of a view.

Letters: B views, C channels, X Y Z sides of the grid of units, N = X * Y * Z units, H heads, D = C / H.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dagman.devices import pin_attention
from dagman.errors import SettingsError
from dagman.model.linear import Mlp


class Semantics(NamedTuple):
    """What semantic attention says of a view.

    tokens (B N C) and cls (B C) leave the last block; attention (B H N) is the [CLS] row of its softmax without the
    [CLS] token's own entry, so each row sums to at most 1. Units are in the order of `x.flatten(2)`.
    """

    tokens: Float[Tensor, "B N C"]
    cls: Float[Tensor, "B C"]
    attention: Float[Tensor, "B H N"]


class SemanticAttention(nn.Module):
    """Pre-norm transformer blocks over [LN(x) tokens, CLS], the [CLS] token last.

    position: "none" (a crop's place says nothing) or "sincos", fixed codes of each unit's place in the view.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        depth: int = 2,
        mlp_ratio: float = 4.0,
        position: Literal["none", "sincos"] = "none",
    ) -> None:
        super().__init__()
        if dim % heads:
            raise SettingsError(f"{heads} heads of semantic attention do not divide {dim} channels")
        if depth < 1:
            raise SettingsError("semantic attention needs at least one block")
        self.position = position
        self.norm = nn.LayerNorm(dim)
        self.cls = nn.Parameter(torch.empty(dim))
        nn.init.trunc_normal_(self.cls, std=0.02)
        self.blocks = nn.ModuleList(GlobalBlock(dim, heads, mlp_ratio) for _ in range(depth))

    def forward(self, x: Float[Tensor, "B C X Y Z"]) -> Semantics:
        """Tokens, [CLS] and attention of a feature map."""
        z, last = self._reach_last_block(x)
        attention = last.attend_from_cls(z)
        z = last(z)
        return Semantics(tokens=z[:, :-1], cls=z[:, -1], attention=attention)

    def summarize(self, x: Float[Tensor, "B C X Y Z"]) -> Float[Tensor, "B C"]:
        """`forward(x).cls` alone: in the last block only the [CLS] token is computed."""
        z, last = self._reach_last_block(x)
        return last.forward_cls(z)

    def attend(self, x: Float[Tensor, "B C X Y Z"]) -> Float[Tensor, "B H N"]:
        """`forward(x).attention` alone: stops at the [CLS] row of the last block."""
        z, last = self._reach_last_block(x)
        return last.attend_from_cls(z)

    def _reach_last_block(self, x: Tensor) -> tuple[Tensor, GlobalBlock]:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        if self.position == "sincos":
            grid = (x.shape[2], x.shape[3], x.shape[4])
            tokens = tokens + encode_positions(grid, x.shape[1]).to(tokens)
        cls = self.cls.to(tokens.dtype).expand(len(tokens), 1, -1)
        z = torch.cat([tokens, cls], dim=1)
        for block in self.blocks[:-1]:
            z = block(z)
        return z, cast(GlobalBlock, self.blocks[-1])


class GlobalBlock(nn.Module):
    """Attention over all tokens, then an MLP, each after a LayerNorm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, z: Float[Tensor, "B T C"], scales: tuple[Tensor, Tensor] | None = None) -> Float[Tensor, "B T C"]:
        """Tokens after the block; scales: factors (B 1 1) of its two branches, for stochastic depth."""
        qkv = self.qkv(self.norm1(z)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        # Never holds the T x T probabilities: with stage 1 as the place of the module T is 32,769.
        attended = _attend(q, k, v)
        branch = self.proj(attended.transpose(1, 2).flatten(2))
        z = z + (branch if scales is None else branch * scales[0].to(branch.dtype))
        branch = self.mlp(self.norm2(z))
        return z + (branch if scales is None else branch * scales[1].to(branch.dtype))

    def probabilities(self, z: Float[Tensor, "B T C"]) -> Float[Tensor, "B H T T"]:
        """What each token attends to, in float32 or finer: rows sum to one."""
        q, k, _ = self.qkv(self.norm1(z)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)

    def forward_cls(self, z: Float[Tensor, "B T C"]) -> Float[Tensor, "B C"]:
        """`forward(z)[:, -1]`: one query over all keys, and the MLP of one token."""
        normed, dim = self.norm1(z), z.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(normed[:, -1:], weight[:dim], bias[:dim]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = F.linear(normed, weight[dim:], bias[dim:]).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        attended = _attend(q, k, v)
        cls = z[:, -1:] + self.proj(attended.transpose(1, 2).flatten(2))
        return (cls + self.mlp(self.norm2(cls)))[:, 0]

    def attend_from_cls(self, z: Float[Tensor, "B T C"]) -> Float[Tensor, "B H N"]:
        """softmax(q_CLS k^T / sqrt(D)) over all T keys, without the last, which is [CLS] itself."""
        normed = self.norm1(z)
        dim = z.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(normed[:, -1], weight[:dim], bias[:dim]).unflatten(-1, (self.heads, 1, -1))
        k = F.linear(normed, weight[dim : 2 * dim], bias[dim : 2 * dim]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # float32, products too: near-uniform attention differs between units in the third digit, below bfloat16's step.
        with torch.autocast(z.device.type, enabled=False):
            q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            return torch.softmax(logits, dim=-1).squeeze(2)[..., :-1]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v; all B H T D."""
    with pin_attention(q.device):
        return F.scaled_dot_product_attention(q, k, v)


def encode_positions(grid: tuple[int, int, int], dim: int) -> Float[Tensor, "N {dim}"]:
    """Sine and cosine codes of each unit's place: a sixth of the channels for each axis and function, the rest zero."""
    frequencies = dim // 6
    rates = 10_000.0 ** -(torch.arange(frequencies) / max(frequencies, 1))
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid)).reshape(-1, 3)
    angles = (places[:, :, None] * rates).flatten(1)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim - 6 * frequencies))
