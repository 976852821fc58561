"""Compare our Swin encoder with MONAI's SwinTransformer of the same shape, in turn, in one process with one allocator.

Prints the wall time and the processor time of each (median, least), and the ratio of the two (median over rounds): above 1, ours
is faster. On a machine with other jobs, rely on the processor time.
Needs the extra `monai`. Example: python benchmarks/swin_step.py --size small --precision bf16 --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from dagman.devices import tune_allocator

_ALLOCATOR = tune_allocator("auto", "cpu")  # before torch takes its first memory

import torch  # noqa: E402

from dagman.model import SwinEncoder, SwinShape  # noqa: E402

SIZES = {
    "tiny": (SwinShape(embed=24, depths=(2, 2, 2, 2), heads=(2, 4, 4, 8)), 64),
    "small": (SwinShape(depths=(2, 2, 4, 2)), 96),
    "paper": (SwinShape(), 128),
}


def build_monai(shape: SwinShape) -> torch.nn.Module:
    from monai.networks.nets.swin_unetr import SwinTransformer

    return SwinTransformer(
        in_chans=shape.in_channels,
        embed_dim=shape.embed,
        window_size=(shape.window,) * 3,
        patch_size=(shape.patch,) * 3,
        depths=shape.depths,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        downsample="mergingv2",
    )


def time_call(call: Callable[[], object], device: str) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--side", type=int, help="side of a view in voxels (default: that of the size)")
    parser.add_argument("--precision", choices=["fp32", "autocast", "bf16"], default="fp32", help="bf16: weights too")
    parser.add_argument("--pass", dest="direction", choices=["forward", "step"], default="step", help="step: both passes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    shape, side = SIZES[arguments.size]
    side = arguments.side or side
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    device = arguments.device

    view = torch.rand(arguments.views, 1, side, side, side).to(device, dtype)
    encoders = {"monai": build_monai(shape).to(device, dtype), "ours": SwinEncoder(shape).to(device, dtype)}

    def run(name: str) -> None:
        encoder = encoders[name]
        with torch.autocast(device, torch.bfloat16, enabled=arguments.precision == "autocast"):
            if arguments.direction == "forward":
                with torch.no_grad():
                    encoder(view)
                return
            loss = sum(x.float().square().mean() for x in encoder(view)[-4:])
        encoder.zero_grad()
        loss.backward()

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in encoders}
    for number in range(arguments.rounds + 1):
        for name, taken in seconds.items():
            taken.append(time_call(partial(run, name), device))
            if number == 0:
                taken.clear()  # caches, plans and the allocator warm up
    print(
        f"{arguments.size}, {arguments.views} views of {side}^3, {arguments.precision}, {arguments.direction}, {device}, ", end=""
    )
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; allocator {_ALLOCATOR.value}: {_ALLOCATOR.reason}")
    for kind, clock in enumerate(("wall", "processor")):
        theirs, mine = ([pair[kind] for pair in seconds[name]] for name in ("monai", "ours"))
        ratios = [their / my for their, my in zip(theirs, mine, strict=True)]
        print(f"  {clock:9}  monai {statistics.median(theirs):.3f} s ({min(theirs):.3f})", end="")
        print(f"  ours {statistics.median(mine):.3f} s ({min(mine):.3f})", end="")
        print(f"  ratio x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
