"""How fast the pretraining step is on this machine, and how far from what the machine can do.

Ceilings (a large copy, a bf16 product), the floor of a step from its operations and fewest bytes, every fast path beside its
reference (errors of values and gradients, time), whole steps with memory and a profile by kind, whole steps by every fast path
(losses, waits of the host), encoders beside MONAI's, and growth with the side and number of views. Writes
OUT/gpu.json after every part, so that a lease that ends costs what was not begun, and OUT/gpu.md, the tables of docs/benchmarks.md.

On a card, under eight minutes: python -m benchmarks.gpu --out out/gpu
At small size on a CPU (Triton's kernels by its interpreter): TRITON_INTERPRET=1 python -m benchmarks.gpu --quick --out out/gpu
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.checks import ATTENTION, SMALL_ATTENTION, check_attention, check_layer_norm, guard
from benchmarks.gpu.floor import count_floor
from benchmarks.gpu.paths import ON_A_CPU, PATHS, compare_joined, time_path
from benchmarks.gpu.profiling import profile_step
from benchmarks.gpu.report import render
from benchmarks.gpu.timing import time_call
from benchmarks.gpu.work import build_work
from benchmarks.swin_step import SIZES, build_monai

from dagman.model import SwinEncoder
from dagman.records.files import write_json, write_text

STEPS = [("small", 16), ("small", 32), ("small", 64), ("paper", 16), ("paper", 32), ("paper", 64)]
SIDES, SMALL_SIDES = [64, 96, 128, 160], [32, 64]
"""Sides of the views of the table of growth, and those of a quick one."""
MOST_VIEWS = {False: 64, True: 2}
"""Of the table of growth, by whether it is quick: doubled from 1 on until they do not fit."""


def time_encoder(
    size: str, direction: str, views: int, side: int, kernels: str, device: str, rounds: int, *, beside: bool = True
) -> dict[str, Any]:
    """An encoder's forward pass, or forward and backward, in bf16 autocast; MONAI's of the same shape beside it, eager."""
    shape, view = SIZES[size][0], torch.rand(views, 1, side, side, side, device=device)
    ours = SwinEncoder(shape).to(device)
    ours.use_kernels(kernels)

    def run(encoder: torch.nn.Module) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16), torch.set_grad_enabled(direction == "step"):
            features = encoder(view)[-4:]
            loss = torch.stack([x.float().square().mean() for x in features]).sum()
        if direction == "step":
            loss.backward()

    row = {"name": f"{size}, {views} views of {side}^3, {kernels}", "pass": direction, "monai": None}
    row |= time_call(partial(run, ours), device, rounds=rounds)
    if kernels == "reference" and beside:
        theirs = build_monai(shape).to(device)
        row["monai"] = time_call(partial(run, theirs), device, rounds=rounds)["seconds"]
    return row


def time_step(size: str, views: int, kernels: str, device: str, ceilings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """A whole step, its memory, and its floor; one that does not fit says so."""
    row = {"name": size, "views": views, "kernels": kernels}
    try:
        work = build_work(size, batch=views, device=device, precision="bf16", kernels=kernels)
        return row | time_call(work.step, device, rounds=rounds) | {"floor": count_floor(work, ceilings)["seconds"]}
    except torch.OutOfMemoryError:
        return row | {"failed": "does not fit"}


def grow(size: str, side: int, device: str, most: int, rounds: int) -> list[dict[str, Any]]:
    """Forward and backward of the encoder with 1, 2, 4, ... views of a side, to the most that fit; seconds a million voxels."""
    rows, views = [], 1
    while views <= most:
        try:
            row = time_encoder(size, "step", views, side, "reference", device, min(rounds, 3), beside=False)
        except torch.OutOfMemoryError:
            break
        voxels = views * side**3 / 1e6
        rows.append({**row, "side": side, "views": views, "seconds_per_million": row["seconds"] / voxels})
        views *= 2
    return rows


def measure(quick: bool, device: str, write: Callable[[dict[str, Any]], None]) -> None:
    """All parts, in the order of what a short lease needs most."""
    rounds = 2 if quick else 10
    names = ["reference", "triton"] if device != "cpu" or quick else ["reference"]
    size, views, side = ("tiny", 2, 32) if quick else ("small", 16, 96)
    ceilings = measure_ceilings(device, copied_mib=16 if quick else 1024, side=256 if quick else 8192, rounds=rounds)
    lists = ("checks", "steps", "profiles", "paths", "joined", "encoders", "growth")
    found: dict[str, Any] = {"ceilings": ceilings, **{name: [] for name in lists}}
    write(found)
    for name, case in (SMALL_ATTENTION if quick else ATTENTION).items():
        call = partial(check_attention, name, case, views=1 if quick else 8, device=device, rounds=rounds)
        found["checks"].append(guard(call, name))
    for channels in (24,) if quick else (24, 48, 96, 192, 384, 768):
        call = partial(check_layer_norm, channels, rows=16 if quick else 1 << 18, device=device, rounds=rounds)
        found["checks"].append(guard(call, f"LayerNorm of {channels}"))
    write(found)
    for kernels in names[:1] if quick else names:
        found["steps"].append(time_step(size, views, kernels, device, ceilings, rounds))
        work = build_work(size, batch=views, device=device, precision="bf16", kernels=kernels)
        found["profiles"].append({"name": f"{size}, {views} views, {kernels}", **profile_step(work, device)})
        del work
        write(found)
    for kernels in names[:1] if quick else names:
        for direction in ("forward", "step"):
            found["encoders"].append(time_encoder(size, direction, views, side, kernels, device, rounds))
        write(found)
    for path in ON_A_CPU if device == "cpu" else PATHS:
        found["paths"].append(time_path(path, size, views, device, rounds, found["paths"]))
        write(found)
    found["joined"].append(compare_joined(size, views, side, device, rounds))
    for grown in SMALL_SIDES if quick else SIDES:
        found["growth"] += grow(size, grown, device, MOST_VIEWS[quick], rounds)
        write(found)
    if quick:
        return
    for kernels in names:
        for size, views in STEPS[1:]:
            found["steps"].append(time_step(size, views, kernels, device, ceilings, 5))
            write(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--quick", action="store_true", help="at a size that a CPU can do in a minute")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    head = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
    }

    def write(found: dict[str, Any]) -> None:
        whole = {**head, "seconds": round(time.perf_counter() - began, 1), **found}
        write_json(arguments.out / "gpu.json", json.loads(json.dumps(whole)))
        write_text(arguments.out / "gpu.md", render(whole))

    measure(arguments.quick, device, write)
    print((arguments.out / "gpu.md").read_text())


if __name__ == "__main__":
    main()
