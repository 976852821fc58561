"""The cost of the paper's run on several machines: exact bytes and operations, and times from the measured speed of one H100.

    python benchmarks/scale.py

Prints the tables of docs/scale.md. Weights, gradients, checkpoints and crops are counted; operations are counted by torch on the
meta device, without running the model; only `MEASURED` comes from a machine (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from dagman.settings import Settings, load_settings, resolve_settings
from dagman.training.assembly import build_networks, count_masked

MEASURED = {"device": "H100 80 GB", "size": "small", "views_a_step": 16, "views_a_second": 72.0, "with_reading": 65.0}
"""`small`, bf16, 96^3: a whole step (docs/benchmarks.md), and a whole run (docs/experiments.md, 8.5 % waiting for data)."""
BANDWIDTH = {"A100 80 GB": 2.04, "H100 80 GB": 3.35}
"""Memory bandwidth in TB/s from the data sheets. It limits the copies and norms, which are 42 % of a step."""
CTS, EPOCHS = 10_412, 800


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind: their number, and the bytes per second that each can send to another host, or within its own."""

    name: str
    card: str
    gpus: int
    link: float


CLUSTERS = (
    Cluster("4 x A100, one host, NVLink 3", "A100 80 GB", 4, 300e9),
    Cluster("8 x H100, one host, NVLink 4", "H100 80 GB", 8, 450e9),
    Cluster("64 x H100, 8 hosts, 400 Gbit/s per GPU", "H100 80 GB", 64, 50e9),
    Cluster("64 x H100, 8 hosts, 25 Gbit/s per host", "H100 80 GB", 64, 25e9 / 8 / 8),
)


@dataclass(frozen=True)
class Size:
    """Exact figures of a model size: parameters, bytes, and operations per view and step."""

    weights: int
    encoder: int
    gradient_bytes: int
    checkpoint_bytes: int
    crop_bytes: int
    operations: float


def measure_size(name: str) -> Size:
    """Count the weights and operations of a preset without running it."""
    settings = resolve_settings(load_settings(name)[0])[0]
    with torch.device("meta"):
        student, teacher = build_networks(settings)
    weights = sum(p.numel() for p in student.parameters())
    own = sum(p.numel() for p in teacher.parameters()) if teacher is not None else 0
    encoder = sum(p.numel() for n, p in student.named_parameters() if n.startswith(("encoder.", "semantic_attention.")))
    view = torch.empty(1, 1, *(settings.view.side,) * 3, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student.encoder(view)
    encoder_pass = counter.get_total_flops()
    # Student forward and backward (twice the forward); the teacher passes twice, clean for attention and noisy for its targets.
    operations = 5 * encoder_pass + 4 * _count_head_operations(settings)
    return Size(
        weights=weights,
        encoder=encoder,
        gradient_bytes=4 * weights,
        checkpoint_bytes=4 * (3 * weights + own),
        crop_bytes=2 * settings.view.side**3,
        operations=operations,
    )


def _count_head_operations(settings: Settings) -> float:
    """Operations of one pass of a view's masked units through the patch projector: two per weight."""
    p, width = settings.projector, settings.model.embed << 3
    weights = width * p.hidden + p.hidden**2 * (p.layers - 2) + p.hidden * p.bottleneck + p.bottleneck * int(p.prototypes)
    return 2.0 * weights * count_masked(settings)[1].hidden


def estimate_speed(card: str, small: Size, paper: Size) -> float:
    """Views per second of `paper` on one card: the measured speed of `small`, scaled by operations and memory bandwidth."""
    measured = float(MEASURED["with_reading"])  # type: ignore[arg-type]
    return measured * small.operations / paper.operations * BANDWIDTH[card] / BANDWIDTH["H100 80 GB"]


def estimate_run(cluster: Cluster, small: Size, paper: Size, batch: int) -> dict[str, float]:
    """Hours and time per step of the paper's run with `batch` views per step over the whole cluster."""
    views = 2 * CTS * EPOCHS
    steps = math.ceil(views / batch)
    speed = estimate_speed(cluster.card, small, paper)
    compute = batch / cluster.gpus / speed
    # A ring all-reduce sends and receives each gradient twice, except the share that stays on the rank.
    reduce = 2 * (cluster.gpus - 1) / cluster.gpus * paper.gradient_bytes / cluster.link
    # The reduction overlaps only with the last backward pass: half of a step that has one micro-batch.
    step = compute + max(0.0, reduce - compute / 2)
    return {
        "steps": steps,
        "pairs_a_gpu": batch / 2 / cluster.gpus,
        "compute": compute,
        "reduce": reduce,
        "step": step,
        "hours": steps * step / 3600,
        "gpu_hours": steps * step / 3600 * cluster.gpus,
        "read": batch / step * paper.crop_bytes,
        "efficiency": compute / step,
    }


def tabulate_sizes(sizes: dict[str, Size]) -> list[str]:
    """Exact figures of each size as Markdown rows."""
    rows = ["| size | weights | encoder | gradients | checkpoint | one crop, int16 | operations per view |", "|---" * 7 + "|"]
    for name, size in sizes.items():
        counts = f"{size.weights / 1e6:.1f} M | {size.encoder / 1e6:.1f} M | {size.gradient_bytes / 1e6:.0f} MB"
        sizes_of_files = f"{size.checkpoint_bytes / 1e6:.0f} MB | {size.crop_bytes / 1e6:.2f} MB"
        rows.append(f"| `{name}` | {counts} | {sizes_of_files} | {size.operations / 1e12:.2f} T |")
    return rows


def tabulate_clusters(small: Size, paper: Size) -> list[str]:
    """The paper's run on each cluster as Markdown rows."""
    rows = [
        "| cluster | views per step | pairs per GPU | compute | all-reduce | step | hours | GPU hours | read |",
        "|---" * 9 + "|",
    ]
    for cluster in CLUSTERS:
        for batch in (128, 512) if cluster.gpus == 64 else (64,):
            run = estimate_run(cluster, small, paper, batch)
            times = " | ".join(f"{run[key] * 1e3:.0f} ms" for key in ("compute", "reduce", "step"))
            costs = f"{run['hours']:.1f} | {run['gpu_hours']:.0f} | {run['read'] / 1e9:.2f} GB/s"
            rows.append(f"| {cluster.name} | {batch} | {run['pairs_a_gpu']:.0f} | {times} | {costs} |")
    return rows


def main() -> None:
    """Print both tables."""
    sizes = {name: measure_size(name) for name in ("small", "paper")}
    print("\n".join([*tabulate_sizes(sizes), "", *tabulate_clusters(sizes["small"], sizes["paper"])]))


if __name__ == "__main__":
    main()
