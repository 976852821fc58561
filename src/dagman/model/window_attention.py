"""Multi-head attention within windows, with a bias for each relative position.

Notation: M windows of all views (B * W), W windows of a view, H heads, n tokens of a window, D channels of a head, C = H * D.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dagman.devices import pin_attention
from dagman.model.linear import Linear
from dagman.model.windows import Triple, WindowPlan, gather_tokens, gather_windows, keep_results

LARGE = 2**18
"""Number of tokens of a view above which, without gradients, a block processes windows and tokens in parts. A whole scan then needs
little more memory than twice that of its tokens. Views of up to 128^3 voxels, as used in training, are processed at once."""
WINDOWS_AT_ONCE = 512


def attention_probabilities(
    q: Float[Tensor, "M H n D"],
    k: Float[Tensor, "M H n D"],
    bias: Float[Tensor, "H n n"],
    mask: Bool[Tensor, "W n n"] | None,
    scale: float,
) -> Float[Tensor, "M H n n"]:
    """Compute softmax(scale * q k^T + bias) in float32 or higher precision; `mask` is True for pairs that do not attend."""
    logits = (q * scale) @ k.transpose(-2, -1)
    # float32, because a bfloat16 softmax keeps only two digits of each probability.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) + bias
    if mask is not None:
        by_view = logits.unflatten(0, (-1, len(mask)))
        logits = by_view.masked_fill(mask[:, None], -math.inf).flatten(0, 1)
    return torch.softmax(logits, dim=-1)


def attend_windows(
    q: Float[Tensor, "M H n D"],
    k: Float[Tensor, "M H n D"],
    v: Float[Tensor, "M H n D"],
    bias: Float[Tensor, "H n n"],
    mask: Bool[Tensor, "W n n"] | None,
    scale: float,
) -> Float[Tensor, "M H n D"]:
    """Compute attention within each window; `mask` is True for pairs that do not attend (window m uses row m mod W)."""
    return attention_probabilities(q, k, bias, mask, scale).to(v.dtype) @ v


def attend_windows_in_place(
    q: Float[Tensor, "M H n D"],
    k: Float[Tensor, "M H n D"],
    v: Float[Tensor, "M H n D"],
    bias: Float[Tensor, "H n n"],
    mask: Bool[Tensor, "W n n"] | None,
    scale: float,
) -> Float[Tensor, "M H n D"]:
    """Like `attend_windows`, bit-identical, with two n x n tensors fewer per window, forward and backward.

    1.3 times as fast on a CPU.
    """
    logits = (q * scale) @ k.transpose(-2, -1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).add_(bias)
    if mask is not None:
        # Hiding this from autograd is correct, because softmax returns a zero gradient where a probability is zero.
        logits.detach().unflatten(0, (-1, len(mask))).masked_fill_(mask[:, None], -math.inf)
    return torch.softmax(logits, dim=-1).to(v.dtype) @ v


def attend_windows_fused(
    q: Float[Tensor, "M H n D"],
    k: Float[Tensor, "M H n D"],
    v: Float[Tensor, "M H n D"],
    bias: Float[Tensor, "H n n"],
    mask: Bool[Tensor, "W n n"] | None,
    scale: float,
) -> Float[Tensor, "M H n D"]:
    """Like `attend_windows` up to rounding, with torch's fused kernel, for float32 on a CPU without gradients.

    1.3 to 1.6 times as fast.
    """
    with pin_attention(q.device):
        # Expanded to all windows, because a bias that is broadcast over windows does not take the fast path.
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(q), -1, -1, -1), scale=scale)
        if mask is not None:
            # The shift cuts only few windows, those at the far ends of the grid.
            cut = mask.flatten(1).any(1).repeat(len(q) // len(mask)).nonzero()[:, 0]
            if len(cut):
                biases = bias.masked_fill(mask[cut % len(mask)][:, None], -math.inf)
                attended[cut] = F.scaled_dot_product_attention(q[cut], k[cut], v[cut], attn_mask=biases, scale=scale)
    return attended


@keep_results
def relative_positions(window: Triple, side: int, device: torch.device) -> Int[Tensor, "n n"]:
    """Find the row of the bias table for each pair of positions in a window. Results are cached.

    The table has one row per offset in a window of `side` tokens. A smaller window uses the rows of its offsets, which are at the
    centre of the table. (MONAI 1.6 uses the first rows instead, which belong to other offsets.)
    """
    places = torch.cartesian_prod(*(torch.arange(w, device=device) for w in window)).reshape(-1, 3)
    offsets = places[:, None] - places[None, :] + side - 1
    span = 2 * side - 1
    return (offsets[..., 0] * span + offsets[..., 1]) * span + offsets[..., 2]


class WindowAttention(nn.Module):
    """Attention of each token to the tokens of its window.

    `bias_table` has one row per relative position in a window of `side` tokens, and one column per head.
    """

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.scale = (dim // heads) ** -0.5
        self.bias_table = nn.Parameter(torch.empty((2 * side - 1) ** 3, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.kernel: Callable[[Tensor, Tensor, Tensor, WindowPlan, float], Tensor] | None = None
        """`kernels.window_attention.attend_tokens` if Triton kernels are used; None for the reference below."""

    def forward(self, x: Float[Tensor, "B L C"], plan: WindowPlan) -> Float[Tensor, "B L C"]:
        """Apply attention within the windows of the plan."""
        if self.kernel is not None:
            return self.proj(self.kernel(self.qkv(x), self.qkv.bias, self._bias(plan), plan, self.scale))
        return gather_tokens(self._attend(gather_windows(x, plan), self._bias(plan), plan.masked), plan)

    def attend_part(self, windows: Float[Tensor, "m n C"], plan: WindowPlan, first: int) -> Float[Tensor, "m n C"]:
        """Apply attention to some windows of one view, starting with number `first` of the plan."""
        regions = None if plan.regions is None else plan.regions[first : first + len(windows)]
        mask = None if regions is None else regions[:, :, None] != regions[:, None, :]
        return self._attend(windows, self._bias(plan), mask)

    def probabilities(self, x: Float[Tensor, "B L C"], plan: WindowPlan) -> Float[Tensor, "M H n n"]:
        """Compute the attention of each token of each window; rows sum to 1."""
        q, k, _ = self._project(gather_windows(x, plan))
        return attention_probabilities(q, k, self._bias(plan), plan.masked, self.scale)

    def _attend(self, windows: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self._project(windows)
        fused = (
            not (torch.is_grad_enabled() or torch.compiler.is_compiling()) and q.device.type == "cpu" and q.dtype == torch.float32
        )
        attend = attend_windows_fused if fused else attend_windows_in_place
        attended = attend(q, k, v, bias, mask, self.scale)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _project(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def _bias(self, plan: WindowPlan) -> Tensor:
        return self.bias_table[relative_positions(plan.window, self.side, self.bias_table.device)].permute(2, 0, 1)
