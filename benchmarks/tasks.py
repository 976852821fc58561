"""Embedding whole scans beside MONAI: scans a minute from files to vectors, one process, one allocator, stepped in turn.

Ours reads, judges, prepares (anti-aliased, cropped to the body) and puts each scan through the encoder in overlapping tiles,
pooled over four stages. MONAI loads the same file with its own chain (LoadImage, Orientation, Spacing, ScaleIntensityRange) and
puts it through SwinUNETR's encoder by its own sliding window of a view and 25 % overlap, pooled over the last stage: once of
our shape (`alike`), once as SwinUNETR comes (`default`: depths 2, window 7). Prints scans a minute (median over rounds) and
ratios: above 1, ours is quicker. With --cropped off ours sees the whole field, as MONAI does: the ratio is that of the code alone.
Needs the extra `monai`. Example: python benchmarks/tasks.py --scans ../shared/data/other-ct --size small --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dagman.devices import tune_allocator

_ALLOCATOR = tune_allocator("auto", "cpu")  # before torch takes its first memory

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from dagman.encoder.encoder import Encoder  # noqa: E402
from dagman.encoder.loading import load_encoder  # noqa: E402
from dagman.encoder.tiling import OVERLAP  # noqa: E402
from dagman.errors import DagmanError  # noqa: E402
from dagman.scans.discovery import find_series  # noqa: E402
from dagman.scans.phantom import write_cohort  # noqa: E402

Embed = Callable[[Path], NDArray[np.float32]]


def build_monai(encoder: Encoder, *, alike: bool) -> Embed:
    """MONAI's loading, SwinUNETR's encoder and sliding window; with fresh weights, which cost the same."""
    from monai import transforms
    from monai.inferers import sliding_window_inference
    from monai.networks.nets.swin_unetr import SwinUNETR

    shape, config = encoder.config.shape, encoder.config
    own = {"depths": shape.depths, "num_heads": shape.heads, "window_size": shape.window, "downsample": "mergingv2"}
    network = SwinUNETR(in_channels=1, out_channels=2, feature_size=shape.embed, **(own if alike else {})).swinViT.eval()
    chain = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.Orientation(axcodes="RAS", labels=None),
            transforms.Spacing(pixdim=(config.spacing,) * 3, mode="bilinear"),
            transforms.ScaleIntensityRange(config.low, config.high, 0.0, 1.0, clip=True),
        ]
    )

    @torch.inference_mode()
    def embed(path: Path) -> NDArray[np.float32]:
        view = chain(path)[None].as_tensor()
        side = (config.view,) * 3
        last = sliding_window_inference(view, side, 1, lambda tile: network(tile)[4], overlap=OVERLAP, mode="gaussian")
        return last.mean(dim=(2, 3, 4))[0].numpy()

    return embed


def list_scans(given: Path | None, folder: Path, count: int) -> list[Path]:
    """Files that both can read: those below `given`, or synthetic CTs."""
    if given is None:
        return sorted(write_cohort(folder / "cohort", patients=count, seed=0, spacing=1.5).scans.glob("*.nii.gz"))
    files = [series.files[0] for series in find_series(given).series if series.kind == "nifti"]
    encoder = load_encoder("scratch:tiny", device="cpu")
    kept = []
    for file in sorted(files):
        try:
            encoder.read(file)
        except DagmanError as error:
            print(f"left out   {error}")
        else:
            kept.append(file)
    return kept[:count]


def time_scans(embed: Embed, scans: Sequence[Path]) -> tuple[float, float]:
    """Seconds for all scans: wall, processor."""
    wall, processor = time.perf_counter(), time.process_time()
    for scan in scans:
        vector = embed(scan)
        assert np.isfinite(vector).all(), scan
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, help="folder with NIfTI CTs (default: synthetic ones of 1.5 mm)")
    parser.add_argument("--count", type=int, default=4, help="scans at most")
    parser.add_argument("--size", choices=["tiny", "small", "paper"], default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cropped", choices=["on", "off"], default="on", help="whether ours crops scans to the body first")
    arguments = parser.parse_args()
    encoder = load_encoder(f"scratch:{arguments.size}", device="cpu", precision="fp32")
    encoder = replace(encoder, config=replace(encoder.config, crop_body=arguments.cropped == "on"))
    arms: dict[str, Embed] = {
        "dagman": lambda path: encoder.embed(path).values[0],
        "alike": build_monai(encoder, alike=True),
        "default": build_monai(encoder, alike=False),
    }
    with tempfile.TemporaryDirectory() as folder:
        scans = list_scans(arguments.scans, Path(folder), arguments.count)
        print(f"{len(scans)} scans, {arguments.size}, views of {encoder.config.view}^3, fp32, {torch.get_num_threads()} threads")
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for _ in range(arguments.rounds + 1):
            for name, embed in arms.items():
                times[name].append(time_scans(embed, scans))
    # The first round warms the caches of all.
    warm = {name: rows[1:] for name, rows in times.items()}
    for name, rows in warm.items():
        wall, processor = (statistics.median(row[kind] for row in rows) for kind in (0, 1))
        line = f"{name:8} {60 * len(scans) / wall:7.1f} scans a minute   processor {processor:.1f} s"
        if name != "dagman":
            ratios = [
                statistics.median(their[kind] / our[kind] for our, their in zip(warm["dagman"], rows, strict=True))
                for kind in (0, 1)
            ]
            line += f"   ratio wall x{ratios[0]:.2f}, processor x{ratios[1]:.2f}"
        print(line)


if __name__ == "__main__":
    main()
