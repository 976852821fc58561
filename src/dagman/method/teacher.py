"""The teacher: an exponential moving average (EMA) of the student (paper 3.2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float, shut: Float[Tensor, ""] | None = None) -> None:
    """Update the teacher in place, theta_t <- m theta_t + (1 - m) theta_s, in float32.

    shut: A scalar on the device: 1 to leave the weights unchanged, 0 to update them. None: update them.
    """
    weights = dict(student.named_parameters())
    own = list(teacher.named_parameters())
    if shut is not None:
        # The factor is known only on the device; multiplying the list by a tensor avoids reading it back.
        steps = torch._foreach_sub([weights[name].detach() for name, _ in own], [p for _, p in own])
        torch._foreach_mul_(steps, (1 - shut) * (1 - momentum))
        torch._foreach_add_([p for _, p in own], steps)
        return
    # float32, because in bfloat16 an increment below about 1/512 of the weight is rounded away.
    torch._foreach_lerp_([p for _, p in own], [weights[name].detach() for name, _ in own], 1 - momentum)
