"""How fast the pretraining step is on this machine, and how far from what the machine can do.

Ceilings (a large copy, a bf16 product), the floor of a step from its operations and fewest bytes, every fast path beside its
reference (errors of values and gradients, time), whole steps with memory and a profile by kind, whole steps by every fast path
(losses, waits of the host), encoders beside MONAI's, and growth with the side and number of views. Parts are measured in the order
of their worth, each alone: one that fails is named with its reason and costs no other. OUT/gpu.json is written after every part, so
that a lease that ends costs what was not begun, and OUT/gpu.md with the tables of docs/benchmarks.md.

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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.checks import ATTENTION, LARGER, SMALL_ATTENTION, check_attention, check_layer_norm
from benchmarks.gpu.encoders import compare_joined, grow, time_encoder
from benchmarks.gpu.floor import count_floor
from benchmarks.gpu.parts import DEAD, Found, Part, run_parts, supervise
from benchmarks.gpu.paths import ON_A_CPU, PATHS, SLOW_TO_BUILD, time_path
from benchmarks.gpu.profiling import profile_step
from benchmarks.gpu.report import render
from benchmarks.gpu.timing import time_call
from benchmarks.gpu.work import build_work

from dagman.records.files import write_json, write_text

STEPS = [("small", 32), ("paper", 16), ("small", 64), ("paper", 32), ("paper", 64)]
SIDES, SMALL_SIDES = [64, 96, 128, 160], [32, 64]
"""Sides of the views of the table of growth, and those of a quick one."""
MOST_VIEWS = {False: 64, True: 2}
"""Of the table of growth, by whether it is quick: doubled from 1 on until they do not fit."""
LISTS = ("checks", "steps", "floors", "profiles", "paths", "joined", "encoders", "growth")
VALUES = 1 << 25
"""Of each tensor that LayerNorm is checked with: more than a card's cache holds."""


def time_step(size: str, views: int, kernels: str, device: str, rounds: int) -> dict[str, Any]:
    """A whole step that computes every window, and its memory."""
    plain = ["train.skip_hidden=false"]
    work = build_work(size, batch=views, device=device, precision="bf16", kernels=kernels, assignments=plain)
    row = {"name": size, "views": views, "kernels": kernels, "micro_batch": int(work.settings.train.micro_batch)}
    return row | time_call(work.step, device, rounds=rounds)


def profile(size: str, views: int, kernels: str, device: str) -> dict[str, Any]:
    """Where a step's time goes."""
    work = build_work(size, batch=views, device=device, precision="bf16", kernels=kernels)
    work.step()
    return {"name": f"{size}, {views} views, {kernels}", **profile_step(work, device)}


def list_parts(quick: bool, device: str) -> list[Part]:
    """All parts, in the order of what a short lease needs most; what is slow to build comes late."""
    rounds = 2 if quick else 10
    names = ["reference", "triton"] if device != "cpu" else ["reference"]
    size, views, side = ("tiny", 2, 32) if quick else ("small", 16, 96)
    slower = 5 if device == "cpu" else 1
    limits = {"copied_mib": 16 if quick else 1024, "side": 256 if quick else 8192}
    parts = [Part("ceilings", "ceilings", lambda _: measure_ceilings(device, rounds=rounds, **limits))]

    def add(name: str, into: str, call: Any, most: float = 60.0) -> None:
        parts.append(Part(name, into, lambda _: call(), most * slower))

    def add_path(path: str, most: float = 60.0) -> None:
        call = partial(time_path, path, size, views, device, rounds)
        parts.append(Part(f"{size} step by: {path}", "paths", lambda found: call(found["paths"]), most * slower))

    for kernels in names:
        add(f"step of {size}, {views} views, {kernels}", "steps", partial(time_step, size, views, kernels, device, rounds))
    add(f"floor of {size}, {views} views", "floors", partial(count_floor, size, views, device))
    attention = SMALL_ATTENTION if quick else ATTENTION

    def add_attention(name: str) -> None:
        call = partial(check_attention, name, attention[name], views=1 if quick else 8, device=device, rounds=rounds)
        add(f"attention: {name}", "checks", call)

    for name in attention:
        if name not in LARGER:
            add_attention(name)
    for channels in (24,) if quick else (24, 48, 96, 192, 384, 768):
        call = partial(check_layer_norm, channels, rows=16 if quick else VALUES // channels, device=device, rounds=rounds)
        add(f"LayerNorm of {channels}", "checks", call)
    paths = [path for path in PATHS if device != "cpu" or path in ON_A_CPU]
    for path in paths:
        if path not in SLOW_TO_BUILD:
            add_path(path)
    for direction in ("step", "forward"):
        for kernels in (*names, "monai"):
            call = partial(time_encoder, size, direction, views, side, kernels, device, rounds)
            add(f"encoder of {size}, {direction}, {kernels}", "encoders", call)
    for kernels in names:
        add(f"profile of {size}, {views} views, {kernels}", "profiles", partial(profile, size, views, kernels, device))
    for path in paths:
        if path in SLOW_TO_BUILD:
            add_path(path, most=150.0)
    for name in attention:
        if name in LARGER:
            add_attention(name)
    for large, many in [] if quick else STEPS:
        for kernels in names:
            add(f"step of {large}, {many} views, {kernels}", "steps", partial(time_step, large, many, kernels, device, 3))
        add(f"floor of {large}, {many} views", "floors", partial(count_floor, large, many, device))
    for grown in SMALL_SIDES if quick else SIDES:
        add(f"growth, views of {grown}^3", "growth", partial(grow, size, grown, device, MOST_VIEWS[quick], rounds))
    add("the teacher's two passes as one", "joined", partial(compare_joined, size, views, side, device, rounds))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--quick", action="store_true", help="at a size that a CPU can do in a minute")
    parser.add_argument("--seconds", type=float, default=460.0, help="after which nothing more is measured (default: 460)")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = arguments.worker or time.time()

    def read() -> Found:
        return dict(json.loads((arguments.out / "gpu.json").read_text()))

    def write(found: Found) -> None:
        write_json(arguments.out / "gpu.json", {**found, "seconds": round(time.time() - began, 1)})
        write_text(arguments.out / "gpu.md", render(found))

    if arguments.worker is not None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = {**read(), "device": torch.cuda.get_device_name() if device == "cuda" else "CPU", "torch": torch.__version__}
        whole = run_parts(list_parts(arguments.quick, device), found, write, device=device, ends=began + arguments.seconds)
        sys.exit(0 if whole else DEAD)
    head = {"date": datetime.date.today().isoformat(), "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])}
    write({"device": "not known", "torch": torch.__version__, **head, "ceilings": [], "parts": {}, **{one: [] for one in LISTS}})
    command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--worker", str(began)]
    supervise(command, read, write, ends=began + arguments.seconds)
    print((arguments.out / "gpu.md").read_text())


if __name__ == "__main__":
    main()
