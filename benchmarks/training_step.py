"""Seconds and memory of a whole pretraining step on random views, and with --profile the operations that take the time.

No scans are read: what is left of `dagman pretrain`'s pace is reading and looking.
Example: python benchmarks/training_step.py --size small --precision bf16 --device cuda --profile
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from dagman.devices import peak_memory_gib, tune_allocator
from dagman.method import Targets, ViewPair
from dagman.method.masking import DRAWS
from dagman.method.networks import unit_grid
from dagman.method.noise import count_noise_draws
from dagman.method.teacher import update_teacher
from dagman.settings import load_settings, resolve_settings
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients


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
    asked = [f"train.batch={arguments.batch}"] if arguments.batch else []
    settings = resolve_settings(load_settings(arguments.size, arguments.method, assignments=asked)[0])[0]
    student, teacher = assembly.build_networks(settings)
    student.to(device).train()
    if teacher is not None:
        teacher.to(device)
    method = assembly.compose_method(settings)
    targets = Targets(
        assembly.compose_rules(settings), int(settings.projector.prototypes), assembly.name_projectors(settings), device
    )
    optimizer = torch.optim.AdamW(assembly.group_parameters(student, settings.optim.weight_decay), lr=1e-4)
    side, micro = settings.view.side, int(settings.train.micro_batch)
    grid = unit_grid((side,) * 3)
    units, dropped = grid[0] * grid[1] * grid[2], count_noise_draws(grid, settings.teacher.granularity)

    def draw() -> ViewPair:
        return ViewPair(
            views=torch.rand(micro // 2, 2, 1, side, side, side, device=device),
            masking=torch.rand(micro // 2, 2, units, DRAWS, device=device),
            noise=torch.rand(micro // 2, 2, dropped, device=device),
            drop_path=torch.rand(student.encoder.branches, micro // 2, 2, device=device),
        )

    pairs = [draw() for _ in range(settings.train.batch // micro)]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.precision == "bf16"):
            accumulate_gradients(student, teacher, pairs, method, targets, 0.05)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        if teacher is not None:
            update_teacher(teacher, student, 0.99)
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
