"""What the processes that share a training step exchange, so that targets are computed over the whole step."""

from __future__ import annotations

import torch
from torch import Tensor


class Peers:
    """A single process, which exchanges nothing; subclasses communicate with others.

    All processes hold the same number of view pairs, ordered by rank.

    Attributes:
        rank: Rank of this process, from 0.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes; the result has the same bits in each."""
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """Elementwise maximum over all processes."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all processes by rank; each must hold the same number."""
        return rows


ALONE = Peers()


def average_rows(values: Tensor, peers: Peers = ALONE) -> Tensor:
    """Average `values` over the first axis, over the rows of all processes; a process may have no rows."""
    if peers.size == 1:
        return values.mean(dim=0)
    total = values.sum(dim=0)
    packed = peers.sum(torch.cat([total.flatten(), total.new_full((1,), float(len(values)))]))
    return (packed[:-1] / packed[-1]).view_as(total)


def logsumexp_rows(values: Tensor, peers: Peers = ALONE) -> Tensor:
    """Log-sum-exp over the first axis, over the rows of all processes; the axis is kept with length 1."""
    if peers.size == 1:
        return torch.logsumexp(values, dim=0, keepdim=True)
    own = values.amax(dim=0) if len(values) else values.new_full(values.shape[1:], -torch.inf)
    top = peers.maximum(own)
    return (top + peers.sum((values - top).exp().sum(dim=0)).log())[None]


def place_rows(count: int, peers: Peers, like: Tensor) -> tuple[int, int]:
    """Return the index of this process's first row among the rows of all processes, and their total; `count` is its own number."""
    if peers.size == 1:
        return 0, count
    counts = peers.gather(torch.tensor([count], device=like.device)).tolist()
    return sum(counts[: peers.rank]), sum(counts)
