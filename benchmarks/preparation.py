"""Preparing a scan beside MONAI's loading chain: one process, one thread, the same file, stepped in turn.

Ours reads, judges, hashes, resamples (anti-aliased), crops, packs and writes; MONAI's chain (LoadImaged, Orientationd, Spacingd,
ScaleIntensityRanged) ends in memory and does not guard against aliasing. Prints seconds (median, least) of each, wall and
processor, and the ratio, the median over rounds: above 1, ours is the faster. Then random 96^3 crops a second out of the store.
Needs the extra `monai`. Example: python benchmarks/preparation.py --rounds 3
A real scan: python benchmarks/preparation.py --scan ../shared/data/chest-dicom
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch

from dagman.randomness import generator
from dagman.scans.discovery import find_series
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.series import Prepared, Task, prepare_series
from dagman.store.writer import prepare_store

SIDE = 96


def write_synthetic(path: Path, slices: int) -> Path:
    """A trunk of 512 x 512 voxels of 0.75 mm with slices of 1 mm and 15 HU of noise, as .nii.gz."""
    x, y = np.meshgrid(np.linspace(-1, 1, 512), np.linspace(-1, 1, 512), indexing="ij")
    plane = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40.0, -1000.0)
    plane[((np.abs(x) - 0.35) / 0.25) ** 2 + (y / 0.4) ** 2 < 1] = -850.0
    noise = generator(0, "noise").normal(0, 15, (512, 512, slices)).astype(np.float32)
    image = nibabel.Nifti1Image(np.rint(plane[..., None] + noise).astype(np.int16), np.diag([-0.75, -0.75, 1.0, 1.0]))
    nibabel.save(image, path)
    return path


def build_chain(dicom: bool) -> Callable[[dict[str, str]], object]:
    """MONAI's usual loading at 2 mm."""
    from monai import transforms

    keys = "image"
    return transforms.Compose(
        [
            transforms.LoadImaged(keys, ensure_channel_first=True, reader="PydicomReader" if dicom else None),
            transforms.Orientationd(keys, axcodes="RAS", labels=None),
            transforms.Spacingd(keys, pixdim=(2.0, 2.0, 2.0), mode="bilinear"),
            transforms.ScaleIntensityRanged(keys, -1000, 500, 0.0, 1.0, clip=True),
        ]
    )


def time_call(call: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def report_times(name: str, times: list[tuple[float, float]]) -> None:
    wall, processor = zip(*times, strict=True)
    print(f"{name:8} wall {statistics.median(wall):.2f} ({min(wall):.2f}) s   processor {statistics.median(processor):.2f} s")


def count_crops(store: Store, seconds: float) -> float:
    """Random crops a second, from one thread."""
    random = generator(0, "crops")
    row = store.rows[0]
    size = [min(SIDE, extent) for extent in row.shape]
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        store.crop(row.id, [int(random.integers(0, e - s + 1)) for e, s in zip(row.shape, size, strict=True)], size)
        done += 1
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, help="a file, or a folder with one DICOM series (default: a synthetic .nii.gz)")
    parser.add_argument("--slices", type=int, default=300, help="of the synthetic scan")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scan = arguments.scan or write_synthetic(Path(folder) / "scan.nii.gz", arguments.slices)
        (series,) = find_series(scan).series
        chain = build_chain(series.kind == "dicom")
        given = {"image": str(series.files[0].parent if series.kind == "dicom" else scan)}

        def prepare() -> None:
            result = prepare_series(Task(series, "benchmark"), Path(folder), Preparation())
            assert isinstance(result, Prepared), result

        ours, theirs = [], []
        for _ in range(arguments.rounds + 1):
            theirs.append(time_call(lambda: chain(given)))
            ours.append(time_call(prepare))
        # The first round warms the caches of both.
        ours, theirs = ours[1:], theirs[1:]
        report_times("MONAI", theirs)
        report_times("dagman", ours)
        for index, kind in enumerate(("wall", "processor")):
            ratio = statistics.median(their[index] / our[index] for our, their in zip(ours, theirs, strict=True))
            print(f"ratio    {kind} x{ratio:.2f}")
        prepare_store(scan, Path(folder) / "store", workers=1)
        store = Store(Path(folder) / "store")
        print(f"store    {store.rows[0].size / 2**20:.2f} MiB a scan, {count_crops(store, 3.0):.0f} crops of {SIDE}^3 a second")


if __name__ == "__main__":
    main()
