"""Whole pretraining steps with and without a setting, taken in turn in one process: what it saves, and what it changes.

Prints the median ratio of processor and wall seconds over rounds (above 1: the setting is the quicker), its range, the peak memory
of the process, and the largest relative difference of the losses of one step.
Example: python benchmarks/paired_steps.py --size tiny --set train.skip_hidden=true --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import time

from dagman.devices import peak_memory_gib, tune_allocator

tune_allocator("auto", "cpu")  # before torch takes its first memory

import torch  # noqa: E402
from gpu.work import Work, build_work  # noqa: E402


def time_step(work: Work) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work.step()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--method", default="dagman")
    parser.add_argument("--batch", type=int, help="views a step (default: the size's)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--set", dest="assignments", action="append", default=[], help="key=value of the second arm, repeatable")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arms = []
    for assignments in ([], arguments.assignments):
        torch.manual_seed(0)
        arms.append(
            build_work(
                arguments.size,
                batch=arguments.batch,
                device="cpu",
                precision=arguments.precision,
                method=arguments.method,
                assignments=assignments,
            )
        )
    for arm in arms:
        arm.step()
    plain, changed = (arm.last() for arm in arms)
    apart = max(abs(changed[name] / value - 1) for name, value in plain.items() if name in ("total", "grad_norm"))
    seconds: list[list[tuple[float, float]]] = [[], []]
    for _ in range(arguments.rounds):
        for taken, arm in zip(seconds, arms, strict=True):
            taken.append(time_step(arm))
    train = arms[0].settings.train
    print(f"{arguments.size}, {arguments.method}, {train.batch} views, {arguments.precision}, {' '.join(arguments.assignments)}")
    for kind, clock in enumerate(("wall", "processor")):
        before, after = ([pair[kind] for pair in arm] for arm in seconds)
        ratios = [a / b for a, b in zip(before, after, strict=True)]
        print(f"  {clock:9}  {statistics.median(before):.2f} s to {statistics.median(after):.2f} s", end="")
        print(f"  x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(
        f"  loss and norm of one step {apart:.1e} apart; {peak_memory_gib():.2f} GiB at the peak; {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
