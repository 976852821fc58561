"""The losses (paper 3.2, Eq. 2-5), computed in float32 regardless of the networks' precision.

Notation: R rows (views, or masked units of views), K prototypes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def cross_entropy(
    targets: Float[Tensor, "R K"], logits: Float[Tensor, "R K"], temperature: float, weights: Float[Tensor, "R"] | None = None
) -> Float[Tensor, ""]:
    """CE(t, s) = -sum_k P_t[k] log P_s[k] with P_s = softmax(s / tau_s) (Eq. 2, 4, 5).

    Args:
        targets: The teacher's probabilities P_t; they receive no gradient.
        logits: The student's logits s.
        temperature: tau_s.
        weights: Weights of the rows for a weighted sum; None for the mean over rows.
    """
    log_probabilities = functional.log_softmax(logits.float() / temperature, dim=-1)
    rows = -(targets.detach().float() * log_probabilities).sum(dim=-1)
    return rows.mean() if weights is None else (rows * weights).sum()


def masked_l1(
    prediction: Float[Tensor, "B 1 X Y Z"], view: Float[Tensor, "B 1 X Y Z"], hidden: Bool[Tensor, "B X Y Z"]
) -> Float[Tensor, ""]:
    """Mean absolute error over the masked voxels of each view, averaged over views (Eq. 3); intensities in [0, 1].

    A view without masked voxels contributes 0.
    """
    error = (prediction.float() - view.float()).abs()[:, 0]
    counts = hidden.flatten(1).sum(dim=1)
    return (torch.where(hidden, error, 0.0).flatten(1).sum(dim=1) / counts.clamp_min(1)).mean()
