"""The reconstruction head of AMIP (METHOD, Losses), which maps each token of x4 to the voxels that it covers.

Notation: B views, C channels, x y z sides of the feature map, X Y Z sides in voxels.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ReconstructionHead(nn.Module):
    """LayerNorm over channels, then a linear layer to patch^3 voxels per token (recipe R).

    Args:
        dim: Number of channels C of the feature map.
        patch: Side of a token in voxels.
        channels: Number of channels of the view.
        mean: Initial bias, the mean intensity in [0, 1]; pretraining measures it on the data (see `start_at`).
        std: Standard deviation of the initial weights; small, so that the initial prediction is close to the mean.
    """

    def __init__(self, dim: int, patch: int = 32, channels: int = 1, mean: float = 0.3, std: float = 0.002) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, channels * patch**3)
        nn.init.normal_(self.linear.weight, std=std)
        nn.init.constant_(self.linear.bias, mean)

    def start_at(self, mean: float) -> None:
        """Set the initial prediction to the mean intensity of the data."""
        nn.init.constant_(self.linear.bias, mean)

    def forward(self, x: Float[Tensor, "B C x y z"]) -> Float[Tensor, "B channels X Y Z"]:
        """Predict intensities; if the view's sides are not multiples of `patch`, the result extends beyond the view's far ends."""
        B, _, X, Y, Z = x.shape
        p = self.patch
        voxels = self.linear(self.norm(x.movedim(1, -1))).reshape(B, X, Y, Z, -1, p, p, p)
        return voxels.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(B, -1, X * p, Y * p, Z * p)
