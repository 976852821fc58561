"""The student of every rank as one: torch's DistributedDataParallel, which reduces gradients while the last backward pass runs.

docs/decisions/0028 says why this and not FSDP.
"""

# No annotations from the future here: torch compares those of the hook with its own classes.
from collections.abc import Collection
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from dagman.method.networks import Network
from dagman.training.parallel.group import Group

# What stops the broadcast of buffers before each forward pass; torch renamed it.
_BUFFERS = next(
    name for name in ("forward_sync_buffers", "broadcast_buffers") if name in signature(DistributedDataParallel).parameters
)


def replicate(student: Network, group: Group, untrained: Collection[str]) -> Network | DistributedDataParallel:
    """The student whose backward pass leaves the sum of all ranks' gradients; itself where this process is alone.

    untrained: Prefixes of weights that no loss reaches.
    """
    if group.size == 1:
        return student
    options: dict[str, Any] = {_BUFFERS: False}
    replica = DistributedDataParallel(
        student,
        process_group=group.tensors,
        **options,
        gradient_as_bucket_view=True,
        find_unused_parameters=any(name.startswith(tuple(untrained)) for name, _ in student.named_parameters()),
    )
    replica.register_comm_hook(group, _sum_gradients)
    return replica


def retire(replica: Network | DistributedDataParallel) -> None:
    """End what reduces a replica's gradients, now, whoever still holds the replica.

    A reducer that outlives the group ends gloo's threads under Python's lock, which one of them may wait for, so that the process
    hangs for good; and where a rank was lost, the frames of the error hold the replica until after the group has ended.
    """
    if isinstance(replica, DistributedDataParallel):
        for name in ("logger", "reducer"):
            vars(replica).pop(name, None)


def _sum_gradients(group: Group, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The sum, where DistributedDataParallel would average: a micro-batch's loss is its share of the whole step's already."""
    group.count(bucket.buffer())
    work: Any = dist.all_reduce(bucket.buffer(), group=group.tensors, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
