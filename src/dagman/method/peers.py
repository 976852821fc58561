"""The processes that share a step's views: what they exchange so that targets are those of the whole step."""

from __future__ import annotations

import torch
from torch import Tensor


class Peers:
    """One process alone, which has nothing to exchange; a subclass exchanges with others.

    Every process holds as many pairs of views, in the order of the ranks.

    Attributes:
        rank: This process's number, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """The largest over all processes."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, by rank; each must hold as many."""
        return rows


ALONE = Peers()


def average_rows(values: Tensor, peers: Peers = ALONE) -> Tensor:
    """The mean over the first axis of `values`, over the rows of all processes; a process may hold no rows."""
    if peers.size == 1:
        return values.mean(dim=0)
    total = values.sum(dim=0)
    packed = peers.sum(torch.cat([total.flatten(), total.new_full((1,), float(len(values)))]))
    return (packed[:-1] / packed[-1]).view_as(total)


def logsumexp_rows(values: Tensor, peers: Peers = ALONE) -> Tensor:
    """log of the sum of exp over the first axis, kept as an axis of one, over the rows of all processes."""
    if peers.size == 1:
        return torch.logsumexp(values, dim=0, keepdim=True)
    own = values.amax(dim=0) if len(values) else values.new_full(values.shape[1:], -torch.inf)
    top = peers.maximum(own)
    return (top + peers.sum((values - top).exp().sum(dim=0)).log())[None]


def place_rows(count: int, peers: Peers, like: Tensor) -> tuple[int, int]:
    """The number of this process's first row among those of all processes, and how many there are; `count` are its own."""
    if peers.size == 1:
        return 0, count
    counts = peers.gather(torch.tensor([count], device=like.device)).tolist()
    return sum(counts[: peers.rank]), sum(counts)
