"""Triton kernels for a GPU, each beside the reference of its signature; imported only when they are chosen."""

from __future__ import annotations

import torch

PROCESSORS_OF_A_CPU = 2
"""Stands in for a card's multiprocessors under Triton's interpreter."""


def count_programs(device: torch.device, per_processor: int) -> int:
    """Programs of a backward pass that sums a gradient in parts.

    It is the number of partial sums of a gradient, so cards with unequal numbers of multiprocessors may differ in the last bits.
    """
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS_OF_A_CPU
    return int(processors) * per_processor
