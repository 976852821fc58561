"""Seconds and memory of a whole pretraining step on random views, and with --profile the operations that take the time.

No scans are read: what is left of `dagman pretrain`'s pace is reading and looking.
Example: python benchmarks/training_step.py --size small --precision bf16 --device cuda --profile
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from gpu.work import build_work

from dagman.devices import peak_memory_gib, tune_allocator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--method", default="dagman")
    parser.add_argument("--batch", type=int, help="views a step (default: the size's)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    tune_allocator("auto", arguments.device)
    device = torch.device(arguments.device)
    work = build_work(
        arguments.size, batch=arguments.batch, device=arguments.device, precision=arguments.precision, method=arguments.method
    )
    settings, side = work.settings, work.settings.view.side
    micro = int(settings.train.micro_batch)

    def step() -> None:
        work.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = []
    for number in range(arguments.steps + 2):
        began = time.perf_counter()
        step()
        if number > 1:
            seconds.append(time.perf_counter() - began)
    taken = statistics.median(seconds)
    print(
        f"{arguments.size}, {settings.train.batch} views of {side}^3 in parts of {micro}, {arguments.precision}, {device}: "
        f"{taken:.3f} s a step ({min(seconds):.3f} to {max(seconds):.3f}), "
        f"{settings.train.batch / taken:.1f} views a second, {peak_memory_gib(device.type):.2f} GiB"
    )
    if arguments.profile:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profile:
            step()
        order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=22, max_name_column_width=60))


if __name__ == "__main__":
    main()
