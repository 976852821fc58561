"""The teacher: a moving average of the student (paper 3.2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float, shut: Float[Tensor, ""] | None = None) -> None:
    """theta_t <- m theta_t + (1 - m) theta_s, for every weight of the teacher, in float32.

    shut: 1 on the device where the weights are to stay as they are, else 0.
    """
    weights = dict(student.named_parameters())
    own = list(teacher.named_parameters())
    if shut is not None:
        # The host does not know the weight of the step, which the multiplication of a whole list takes from the device.
        steps = torch._foreach_sub([weights[name].detach() for name, _ in own], [p for _, p in own])
        torch._foreach_mul_(steps, (1 - shut) * (1 - momentum))
        torch._foreach_add_([p for _, p in own], steps)
        return
    # float32: in bfloat16 an increment below about 1/512 of the weight rounds to nothing.
    torch._foreach_lerp_([p for _, p in own], [weights[name].detach() for name, _ in own], 1 - momentum)
