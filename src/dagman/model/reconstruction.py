"""The reconstruction head of AMIP (METHOD "Losses"): each token of x4 to the voxels it stands for.

Letters: B views, C channels, x y z sides of the feature map, X Y Z sides in voxels.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ReconstructionHead(nn.Module):
    """LayerNorm over channels, then one linear layer to patch^3 voxels a token (recipe R).

    patch: voxels along a token's side; channels: of the view; mean: the bias at the start, the mean intensity in [0, 1]
    (a training measures it, see `start_at`);
    std: of the weights at the start, small, so that the first answer is the mean.
    """

    def __init__(self, dim: int, patch: int = 32, channels: int = 1, mean: float = 0.3, std: float = 0.002) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, channels * patch**3)
        nn.init.normal_(self.linear.weight, std=std)
        nn.init.constant_(self.linear.bias, mean)

    def start_at(self, mean: float) -> None:
        """Set the first answer to the mean intensity of the data."""
        nn.init.constant_(self.linear.bias, mean)

    def forward(self, x: Float[Tensor, "B C x y z"]) -> Float[Tensor, "B channels X Y Z"]:
        """Intensities; where the view's sides are no multiples of patch the result is larger, and begins where the view does."""
        B, _, X, Y, Z = x.shape
        p = self.patch
        voxels = self.linear(self.norm(x.movedim(1, -1))).reshape(B, X, Y, Z, -1, p, p, p)
        return voxels.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(B, -1, X * p, Y * p, Z * p)
