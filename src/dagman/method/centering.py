"""Turn the teacher's logits into target probabilities P_t, by centring and sharpening or by Sinkhorn-Knopp, in float32.

Notation: R rows (masked units or views of a whole step, over all micro-batches), K prototypes. If several processes share a step,
R counts the rows of this process, and `peers` adds the contributions of the others.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dagman.method.peers import ALONE, Peers, average_rows, logsumexp_rows, place_rows

TEMPERATURE_FLOOR, TEMPERATURE_CEILING = 5e-4, 10.0
Temperature = float | Tensor
"""A float, or a 0-dimensional float64 tensor on a device, which the host does not have to read."""
_ROWS = 2048
_HALVINGS = 24


def center_and_sharpen(logits: Float[Tensor, "R K"], center: Float[Tensor, "K"], temperature: Temperature) -> Float[Tensor, "R K"]:
    """P_t = softmax((t - center) / tau_t)."""
    return torch.softmax((logits.float() - center) / temperature, dim=-1)


def update_center(
    center: Float[Tensor, "K"], logits: Float[Tensor, "R K"], momentum: float, peers: Peers = ALONE
) -> Float[Tensor, "K"]:
    """Update the centre after a step: the EMA of the mean logits over rows."""
    return center * momentum + average_rows(logits.float(), peers) * (1 - momentum)


def sinkhorn_knopp(
    logits: Float[Tensor, "R K"], temperature: Temperature, rounds: int = 3, peers: Peers = ALONE
) -> Float[Tensor, "R K"]:
    """Sinkhorn-Knopp [SwAV, DINOv2]: all prototypes are used equally, and each row sums to 1.

    Computed in the log domain, because the usual form divides by sums of exp(t / tau), which underflow to 0 if rows are few and
    tau is small.
    """
    scores = logits.float() / temperature
    for _ in range(rounds):
        scores = scores - logsumexp_rows(scores, peers)
        scores = scores - torch.logsumexp(scores, dim=1, keepdim=True)
    return scores.exp()


def entropy(probabilities: Float[Tensor, "*R K"]) -> Float[Tensor, "*R"]:
    """Shannon entropy in nats; 0 log 0 = 0."""
    return torch.special.entr(probabilities).sum(dim=-1)


def solve_temperature(logits: Float[Tensor, "R K"], target: float, peers: Peers = ALONE) -> float:
    """Find tau_t at which the batch-centred logits have mean normalised entropy H(P_t) / ln K = `target` [ours].

    Entropy increases with temperature, so log tau is found by bisection between the floor and the ceiling, from at most
    2,048 evenly spaced rows.
    """
    centred, wanted = _centre_rows(logits, peers), target * math.log(logits.shape[-1])
    low, high = math.log(TEMPERATURE_FLOOR), math.log(TEMPERATURE_CEILING)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if average_rows(entropy(torch.softmax(centred / math.exp(middle), dim=-1)), peers).item() < wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def solve_temperature_on_device(logits: Float[Tensor, "R K"], target: float, peers: Peers = ALONE) -> Float[Tensor, ""]:
    """Like `solve_temperature`, but without waiting for the device; equal up to the device's rounding in float64."""
    centred, wanted = _centre_rows(logits, peers), target * math.log(logits.shape[-1])
    ends = [math.log(TEMPERATURE_FLOOR), math.log(TEMPERATURE_CEILING)]
    low, high = (torch.full((), end, dtype=torch.float64, device=logits.device) for end in ends)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_low = average_rows(entropy(torch.softmax(centred / middle.exp(), dim=-1)), peers) < wanted
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return ((low + high) / 2).exp()


def _centre_rows(logits: Tensor, peers: Peers) -> Tensor:
    """Subtract the mean over all processes' rows; keeps this process's share of at most 2,048 evenly spaced rows."""
    centred = logits.float() - average_rows(logits.float(), peers)
    first, total = place_rows(len(centred), peers, centred)
    stride = max(1, math.ceil(total / _ROWS))
    return centred[-first % stride :: stride]
