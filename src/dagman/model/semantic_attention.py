"""Semantic attention (paper 3.1, Eq. 1): a [CLS] token that attends to every unit of a view.

Notation: B views, C channels, X Y Z sides of the grid of units, N = X * Y * Z units, H heads, D = C / H, T = N + 1 tokens.
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
    """Outputs of the semantic attention; units are in the order of `x.flatten(2)`.

    Attributes:
        tokens: Tokens of the units after the last block.
        cls: [CLS] token after the last block.
        attention: Attention of the [CLS] token to the units in the last block. Its attention to itself is removed from the
            softmax, so each row sums to at most 1.
    """

    tokens: Float[Tensor, "B N C"]
    cls: Float[Tensor, "B C"]
    attention: Float[Tensor, "B H N"]


class SemanticAttention(nn.Module):
    """Pre-norm transformer blocks over the tokens LN(x), followed by a [CLS] token.

    Args:
        dim: Number of channels C.
        heads: Number of attention heads H.
        depth: Number of blocks.
        mlp_ratio: Hidden width of the MLPs relative to `dim`.
        position: Position encoding of the units in the view: "none", because positions within a random crop carry no information,
            or fixed "sincos" codes.

    Raises:
        SettingsError: If `heads` does not divide `dim`, or `depth` is below 1.
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
        """Compute tokens, [CLS] token and attention from a feature map."""
        z, last = self._reach_last_block(x)
        attention = last.attend_from_cls(z)
        z = last(z)
        return Semantics(tokens=z[:, :-1], cls=z[:, -1], attention=attention)

    def summarize(self, x: Float[Tensor, "B C X Y Z"]) -> Float[Tensor, "B C"]:
        """Compute only `forward(x).cls`, restricting the last block to the [CLS] token."""
        z, last = self._reach_last_block(x)
        return last.forward_cls(z)

    def attend(self, x: Float[Tensor, "B C X Y Z"]) -> Float[Tensor, "B H N"]:
        """Compute only `forward(x).attention`, stopping at the attention of the [CLS] token in the last block."""
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
    """Attention over all tokens and an MLP, each with a LayerNorm before it and a residual connection."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, z: Float[Tensor, "B T C"], scales: tuple[Tensor, Tensor] | None = None) -> Float[Tensor, "B T C"]:
        """Apply the block; `scales` are the factors, B 1 1 each, of its two residual branches for stochastic depth."""
        qkv = self.qkv(self.norm1(z)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        # Does not store the T x T probabilities: if the module follows stage 1, T is 32,769.
        attended = _attend(q, k, v)
        branch = self.proj(attended.transpose(1, 2).flatten(2))
        z = z + (branch if scales is None else branch * scales[0].to(branch.dtype))
        branch = self.mlp(self.norm2(z))
        return z + (branch if scales is None else branch * scales[1].to(branch.dtype))

    def probabilities(self, z: Float[Tensor, "B T C"]) -> Float[Tensor, "B H T T"]:
        """Compute the attention of each token to all tokens in float32 or higher precision; rows sum to 1."""
        q, k, _ = self.qkv(self.norm1(z)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)

    def forward_cls(self, z: Float[Tensor, "B T C"]) -> Float[Tensor, "B C"]:
        """Compute only `forward(z)[:, -1]`, with a single query and the MLP of a single token."""
        normed, dim = self.norm1(z), z.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(normed[:, -1:], weight[:dim], bias[:dim]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = F.linear(normed, weight[dim:], bias[dim:]).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        attended = _attend(q, k, v)
        cls = z[:, -1:] + self.proj(attended.transpose(1, 2).flatten(2))
        return (cls + self.mlp(self.norm2(cls)))[:, 0]

    def attend_from_cls(self, z: Float[Tensor, "B T C"]) -> Float[Tensor, "B H N"]:
        """Compute softmax(q_CLS k^T / sqrt(D)) over all T keys, then drop the last entry, which is the [CLS] token itself."""
        normed = self.norm1(z)
        dim = z.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(normed[:, -1], weight[:dim], bias[:dim]).unflatten(-1, (self.heads, 1, -1))
        k = F.linear(normed, weight[dim : 2 * dim], bias[dim : 2 * dim]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # float32, including the products: nearly uniform attention differs between units in the third digit, which bfloat16 cannot
        # resolve.
        with torch.autocast(z.device.type, enabled=False):
            q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            return torch.softmax(logits, dim=-1).squeeze(2)[..., :-1]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v; all tensors are B H T D."""
    with pin_attention(q.device):
        return F.scaled_dot_product_attention(q, k, v)


def encode_positions(grid: tuple[int, int, int], dim: int) -> Float[Tensor, "N {dim}"]:
    """Compute sine and cosine codes of unit positions: dim // 6 channels per axis and function; remaining channels are zero."""
    frequencies = dim // 6
    rates = 10_000.0 ** -(torch.arange(frequencies) / max(frequencies, 1))
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid)).reshape(-1, 3)
    angles = (places[:, :, None] * rates).flatten(1)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim - 6 * frequencies))
