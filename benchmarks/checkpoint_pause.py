"""What a checkpoint costs the steps: the copy that they wait for, and the step beside which it is written.

Steps with and without a checkpoint before them take turns in one process, on the same views, so that both meet the same machine;
the medians are compared. A checkpoint is written to the end before the next step without one. Every process has as many threads as
OMP_NUM_THREADS says.
Example: OMP_NUM_THREADS=1 python benchmarks/checkpoint_pause.py --size tiny --pairs 15
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from devices import make_store

from dagman.training import assembly
from dagman.training.plan.rehearsal import Rehearsal, prepare_rehearsal
from dagman.training.recovery.saving import Saver

WARM_UP = 3


def measure_pairs(rehearsal: Rehearsal, folder: Path, pairs: int) -> dict[str, list[float]]:
    """Seconds of steps without and with a checkpoint before them, of its copy, and until it was written."""
    learner, dataset = rehearsal.learner, rehearsal.dataset
    settings = learner.settings
    batch = dataset[0]
    saver = Saver(folder, settings.train.keep_checkpoints, on_written=lambda step: None, on_full_disk=lambda step: None)
    configs = [assembly.describe_encoder(settings, dataset, 1, weights) for weights in ("student", "teacher")]
    seconds: dict[str, list[float]] = {name: [] for name in ("without", "with", "copy", "written", "own_without", "own_with")}

    def take(step: int, name: str) -> None:
        began, own = time.perf_counter(), time.thread_time()
        learner.read(learner.advance(learner.draw_pairs(batch, step, dataset.own), step))
        if learner.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name].append(time.perf_counter() - began)
        seconds[f"own_{name}"].append(time.thread_time() - own)

    for step in range(WARM_UP):
        take(step, "without")
    for values in seconds.values():
        values.clear()
    for pair in range(pairs):
        # Which comes first changes from pair to pair, so that a machine that grows slower favours neither.
        for saves in (pair % 2 == 0, pair % 2 == 1):
            step = WARM_UP + pair
            if not saves:
                take(step, "without")
                continue
            began = time.perf_counter()
            snapshot = learner.copy()
            seconds["copy"].append(time.perf_counter() - began)
            saver.save(step + 1, snapshot, configs[0], None if learner.teacher is None else configs[1], {})
            take(step, "with")
            saver.follow(wait=True)
            seconds["written"].append(time.perf_counter() - began - seconds["copy"][-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--batch", type=int, default=4, help="views a step")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--set", action="append", default=[], help="key=value, repeatable")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        load = os.getloadavg()[0]
        settings = ["train.steps=1000", f"train.batch={arguments.batch}", f"train.device={arguments.device}", *arguments.set]
        rehearsal = prepare_rehearsal(make_store(Path(place)), arguments.size, assignments=settings)
        seconds = measure_pairs(rehearsal, Path(place) / "run", arguments.pairs)
        size = sum(file.stat().st_size for file in (Path(place) / "run").rglob("*.safetensors") if "step" in file.parent.name)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = sorted(b / a for a, b in zip(seconds["without"], seconds["with"], strict=True))
    found = {**medians, "slower": medians["with"] / medians["without"] - 1, "ratios": [round(one, 3) for one in ratios]}
    if arguments.json:
        print(json.dumps({"size": arguments.size, "load_before": load, "bytes_kept": size, **found}))
        return
    print(f"{arguments.size}, {arguments.batch} views a step, {arguments.device}, {os.cpu_count()} cores, load {load:.1f} before")
    print(
        f"a step {medians['without']:.3f} s; after a checkpoint {medians['with']:.3f} s, {found['slower']:+.1%} "
        f"(pairs: {statistics.median(ratios) - 1:+.1%} at the median, {ratios[len(ratios) // 4] - 1:+.1%} to "
        f"{ratios[-1 - len(ratios) // 4] - 1:+.1%} the middle half)"
    )
    print(
        f"processor time of the thread that takes the steps: {medians['own_without']:.3f} and {medians['own_with']:.3f} s, "
        f"{medians['own_with'] / medians['own_without'] - 1:+.1%}"
    )
    print(
        f"copied in {medians['copy'] * 1000:.0f} ms ({medians['copy'] / medians['without']:.1%} of a step), written in "
        f"{medians['written']:.2f} s, step included"
    )


if __name__ == "__main__":
    main()
