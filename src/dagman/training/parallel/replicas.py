"""The student shared by all ranks, by torch's DistributedDataParallel, which reduces gradients during the last backward pass.

docs/decisions/0028 explains why not FSDP.
"""

# Without `from __future__ import annotations`: torch compares the annotations of the hook with its own classes.
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

# The option that disables the broadcast of buffers before each forward pass, which torch has renamed.
_BUFFERS = next(
    name for name in ("forward_sync_buffers", "broadcast_buffers") if name in signature(DistributedDataParallel).parameters
)


def replicate(student: Network, group: Group, untrained: Collection[str]) -> Network | DistributedDataParallel:
    """Wrap the student so that its backward pass leaves the sum of all ranks' gradients; a single process gets it unchanged.

    untrained: Prefixes of the names of weights that receive no gradient.
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
    """Destroy the reducer of a replica now, even if something still refers to the replica.

    A reducer that outlives the group joins gloo's threads while it holds Python's lock, for which one of them may be waiting, so
    that the process hangs. When a rank is lost, the frames of the error refer to the replica until after the group has ended.
    """
    if isinstance(replica, DistributedDataParallel):
        for name in ("logger", "reducer"):
            vars(replica).pop(name, None)


def _sum_gradients(group: Group, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Sum where DistributedDataParallel would average, as the loss of a micro-batch is already its share of the whole step's."""
    group.count(bucket.buffer())
    work: Any = dist.all_reduce(bucket.buffer(), group=group.tensors, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
