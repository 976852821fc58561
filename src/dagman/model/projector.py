"""The projection heads of AMPD, AITD and GITD (METHOD, Losses), laid out like iBOT's head.

Notation: C channels, K prototypes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dagman.errors import SettingsError


class Projector(nn.Module):
    """LayerNorm, MLP, L2 normalisation, and cosine similarity to K prototypes.

    Args:
        dim: Number of input channels.
        hidden: Hidden width of the MLP.
        bottleneck: Output width of the MLP.
        prototypes: Number K of outputs.
        layers: Number of linear layers of the MLP; 1 reduces the head to a LayerNorm and a linear layer (the paper's text).

    Raises:
        SettingsError: If `layers` is below 1.
    """

    def __init__(self, dim: int, hidden: int = 2048, bottleneck: int = 256, prototypes: int = 8192, layers: int = 3) -> None:
        super().__init__()
        if layers < 1:
            raise SettingsError(f"a projector of {layers} layers", do="Give 1 or more")
        self.norm = nn.LayerNorm(dim)
        self.mlp: nn.Sequential | None = None
        if layers == 1:
            self.last = nn.Linear(dim, prototypes)
            return
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            steps += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*steps[:-1])
        self.last = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, x: Float[Tensor, "*tokens C"]) -> Float[Tensor, "*tokens K"]:
        """Compute the logits in float32 or higher precision: cosines in [-1, 1], unless layers = 1."""
        x = self.norm(x)
        if self.mlp is not None:
            x = self.mlp(x)
        # float32, because logits are divided by temperatures down to 5e-4, which would turn bfloat16's rounding into several nats.
        with torch.autocast(x.device.type, enabled=False):
            precision = torch.promote_types(self.last.weight.dtype, torch.float32)
            x, weight = x.to(precision), self.last.weight.to(precision)
            if self.mlp is None:
                return F.linear(x, weight, self.last.bias.to(precision))
            # Only the directions of the prototypes matter (weight normalisation with g fixed at 1).
            return F.linear(F.normalize(x, dim=-1, eps=1e-6), F.normalize(weight, dim=-1, eps=1e-6))

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """List the parameters of the last layer, which iBOT freezes during the first epoch."""
        return list(self.last.parameters())
