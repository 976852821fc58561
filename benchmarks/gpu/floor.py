"""The least a step can take: its operations at the card's rate of products, its fewest bytes at the card's rate of copies.

The fewest bytes are counted for an ideal step that keeps everything inside a block in registers:
- tokens are read and written once by each half of each block and by each merging in a forward pass (bf16); a backward pass reads
  them and the gradient, and writes a gradient;
- weights are read in every pass, gradients are written once; AdamW reads 4 floats for each weight (weight, gradient, two moments)
  and writes 3, the teacher's average reads 2 and writes 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from benchmarks.gpu.work import Work, build_work, choose_settings
from torch.utils.flop_counter import FlopCounterMode

FORWARD_PASSES = 3
"""The teacher's clean pass and its noisy one, and the student's."""
BYTES = 2
"""Of a token's channel in bf16."""


COUNTED = 4
"""Views whose operations are counted; those of more are in proportion."""


def count_floor(size: str, views: int, device: str) -> dict[str, Any]:
    """Operations and fewest bytes of one step that computes every window, by the reference, since Triton's kernels go uncounted."""
    counted = min(views, COUNTED)
    work = build_work(size, batch=counted, device=device, precision="bf16", assignments=["train.skip_hidden=false"])
    counter = FlopCounterMode(display=False)
    with counter:
        work.step()
    flop = counter.get_total_flops() * views // counted
    whole = choose_settings(size, batch=views)
    return {"name": size, "views": views, "flop": flop, "bytes": count_bytes(replace(work, settings=whole))}


def floor_seconds(row: dict[str, Any], ceilings: dict[str, Any]) -> float:
    """The larger of the two times that a row's operations and bytes take at the ceilings."""
    return float(max(row["flop"] / ceilings["bf16_flop_per_s"], row["bytes"] / ceilings["bytes_per_s"]))


def count_bytes(work: Work) -> int:
    """Fewest bytes that a step moves, see above."""
    settings = work.settings
    shape, batch, side = work.student.encoder.shape, settings.train.batch, settings.view.side
    tokens = 0
    for stage, depth in enumerate(shape.depths):
        grid = math.ceil(side / (shape.patch << stage)) ** 3
        width = shape.embed << stage
        # A half-block reads and writes its tokens; a merging reads them and writes a quarter as many values.
        tokens += grid * width * (2 * 2 * depth) + grid * width + grid * width // 4
    forward = batch * tokens * BYTES + batch * side**3 * BYTES
    backward = batch * tokens * BYTES * 3 // 2
    weights = sum(p.numel() for p in work.student.parameters())
    passes = 2 * weights * (FORWARD_PASSES + 1) * math.ceil(batch / int(settings.train.micro_batch))
    return FORWARD_PASSES * forward + backward + passes + 4 * weights * (1 + 4 + 3 + 2 + 1)
