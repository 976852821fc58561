"""Processor time of an encoder's forward and backward pass on a CPU, by the number of views and their side.

If the time per million voxels is the same in every row of the printed table, growth is linear in voxels.
Example: python -m benchmarks.growth --size tiny --precision fp32
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from dagman.devices import tune_allocator

tune_allocator("auto", "cpu")  # before torch takes its first memory

import torch  # noqa: E402
from benchmarks.swin_step import SIZES  # noqa: E402

from dagman.model import SwinEncoder  # noqa: E402

CASES = [(1, 64), (2, 64), (4, 64), (1, 96), (1, 128), (1, 160)]
"""Number of views, and their side in voxels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    encoder = SwinEncoder(SIZES[arguments.size][0])

    def take(view: torch.Tensor) -> float:
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = torch.stack([x.float().square().mean() for x in encoder(view)[-4:]]).sum()
        encoder.zero_grad()
        loss.backward()
        return time.process_time() - began

    print(f"{arguments.size}, {arguments.precision}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.0f}")
    for views, side in CASES:
        view = torch.rand(views, 1, side, side, side)
        take(view)
        seconds = [take(view) for _ in range(arguments.rounds)]
        million = views * side**3 / 1e6
        print(
            f"| {views} of {side}^3 | {million:.2f} | {statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
            end="",
        )
        print(f" | {min(seconds) / million:.2f} |", flush=True)


if __name__ == "__main__":
    main()
