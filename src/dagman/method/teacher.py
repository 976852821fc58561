"""The teacher: a moving average of the student (paper 3.2)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """theta_t <- m theta_t + (1 - m) theta_s, for every weight of the teacher, in float32."""
    weights = dict(student.named_parameters())
    own = list(teacher.named_parameters())
    # float32: in bfloat16 an increment below about 1/512 of the weight rounds to nothing.
    torch._foreach_lerp_([p for _, p in own], [weights[name].detach() for name, _ in own], 1 - momentum)
