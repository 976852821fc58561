"""How scans come in, beside MONAI and nnssl's store in the same run: time to a finished store, crops, bytes, peak memory.

    python benchmarks/input.py                                   all of it: about ten minutes on an idle core
    python benchmarks/input.py --parts time crops --rounds 3     some of it

One thread each, stepped in turn, so that both arms meet the same load. Time: ours reads, judges, hashes, resamples (anti-aliased),
crops, packs and writes; MONAI's chain (LoadImaged, Orientationd, Spacingd, ScaleIntensityRanged) ends in memory and does not guard
against aliasing. Crops: random ones of 96^3 of the same prepared voxels, from our store, from a blosc2 file as nnssl writes it, and
from MONAI's CacheDataset in memory. Ratios are the median over rounds; above 1, ours is the better. Memory: the peak of a fresh
process for a scan of 512 x 512 x 1000 voxels, its own interpreter and libraries included. Needs the extra `monai` for time and
crops; --data is the folder of real scans, which are left out where it is absent.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import blosc2
import nibabel
import numpy as np

from dagman.randomness import generator
from dagman.scans.discovery import Series, find_series
from dagman.scans.reading import read_series
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation, prepare_scan
from dagman.store.series import Prepared, Task, prepare_series
from dagman.store.writer import prepare_store

PARTS = ("time", "crops", "bytes", "memory")
SIDE = 96
MANY = 30
"""Structures of the larger of two segmentation models."""
NNSSL_BLOCK, NNSSL_CHUNK = (16, 16, 16), (80, 64, 64)
"""What nnssl's rule gives for patches of 96^3 on a core with 32 KiB and 1.4 MiB of cache (BASELINES 4)."""
_PEAK = """
import sys
from dagman.cli.application import main
try:
    main()
finally:
    rows = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    print("peak KiB", rows["VmHWM"].split()[0], file=sys.stderr)
"""


@dataclass(frozen=True)
class Source:
    """A scan to read, and how it is called in the tables."""

    name: str
    path: Path


def write_synthetic(path: Path, slices: int, side: int = 512) -> Path:
    """A trunk 384 mm wide with slices of 1 mm and 15 HU of noise, as .nii.gz; plane by plane, so that writing takes no memory."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
    plane = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40.0, -1000.0)
    plane[((np.abs(x) - 0.35) / 0.25) ** 2 + (y / 0.4) ** 2 < 1] = -850.0
    noise, step = generator(0, "noise"), 384 / side
    header = nibabel.Nifti1Image(np.zeros((side, side, 1), np.int16), np.diag([-step, -step, 1.0, 1.0])).header
    header.set_data_shape((side, side, slices))
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(slices):
            values = plane + noise.normal(0, 15, plane.shape).astype(np.float32)
            file.write(np.rint(values).astype("<i2").tobytes(order="F"))
    return path


def list_sources(folder: Path, data: Path, scans: Sequence[Path], slices: int, side: int, torso: int) -> list[Source]:
    """The scans given, or the synthetic one, `chest-dicom` and the first of `torso`."""
    if scans:
        return [Source(path.name, path) for path in scans]
    sources = [Source(f"synthetic {side} x {side} x {slices}", write_synthetic(folder / "synthetic.nii.gz", slices, side))]
    if (data / "chest-dicom").is_dir():
        sources.append(Source("chest-dicom", data / "chest-dicom"))
    files = sorted((data / "torso" / "scans").glob("*.nii.gz"))[:torso]
    return sources + [Source(f"torso/{path.name.removesuffix('.nii.gz')}", path) for path in files]


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


def describe_for_monai(series: Series) -> dict[str, str]:
    """The item of a MONAI data set: a file, or the folder of a series."""
    return {"image": str(series.files[0].parent if series.kind == "dicom" else series.files[0])}


def time_call(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds, wall and processor."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def compare_times(source: Source, folder: Path, rounds: int) -> None:
    """Seconds to the finished store beside MONAI's chain; DICOM and NIfTI."""
    (series,) = find_series(source.path).series
    chain, given = build_chain(series.kind == "dicom"), describe_for_monai(series)

    def prepare() -> None:
        result = prepare_series(Task(series, "benchmark"), folder, Preparation())
        assert isinstance(result, Prepared), result

    theirs, ours = [], []
    for number in range(rounds + 1):
        pair = time_call(lambda: chain(given)), time_call(prepare)
        # The first round warms the caches of both.
        if number:
            theirs.append(pair[0])
            ours.append(pair[1])
    shown = []
    for index, kind in enumerate(("processor", "wall")):
        one, other = ([round_[1 - index] for round_ in times] for times in (theirs, ours))
        ratios = [their / our for their, our in zip(one, other, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        shown.append(
            f"{kind}: MONAI {statistics.median(one):.2f} s, dagman {statistics.median(other):.2f} s, "
            f"x{statistics.median(ratios):.2f} ({spread})"
        )
    print(f"time    {source.name:28} {'; '.join(shown)}", flush=True)


def count_calls(call: Callable[[], object], seconds: float) -> float:
    """Calls a second, of processor time."""
    done, start = 0, time.process_time()
    while not done or time.process_time() - start < seconds:
        call()
        done += 1
    return done / (time.process_time() - start)


def compare_crops(source: Source, folder: Path, rounds: int, seconds: float) -> None:
    """Random crops a second of one thread: from our store, from a file of nnssl's settings, from MONAI's cache."""
    from monai import transforms
    from monai.data import CacheDataset

    out = folder / f"store-{abs(hash(source.name))}"
    prepare_store(source.path, out, workers=1)
    store = Store(out)
    row, random = store.rows[0], generator(0, "crops")
    size = [min(SIDE, extent) for extent in row.shape]
    voxels = store.read(row.id).voxels
    theirs = folder / "nnssl.b2nd"
    write_as_nnssl(voxels, theirs)
    picture = voxels.astype(np.float32)[None]
    crop = transforms.RandSpatialCropd("image", roi_size=size, random_size=False)
    caches = {
        copied: CacheDataset([{"image": picture}], transforms.Compose([crop]), copy_cache=copied, progress=False, num_workers=1)
        for copied in (True, False)
    }

    def draw() -> list[int]:
        return [int(random.integers(0, extent - length + 1)) for extent, length in zip(row.shape, size, strict=True)]

    def read_theirs() -> object:
        handle = blosc2.open(str(theirs), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        return handle[tuple(slice(first, first + length) for first, length in zip(draw(), size, strict=True))]

    arms: dict[str, Callable[[], object]] = {
        "dagman": lambda: store.crop(row.id, draw(), size),
        "nnssl": read_theirs,
        "CacheDataset": lambda: caches[True][0],
        "CacheDataset(copy_cache=False)": lambda: caches[False][0],
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, call in arms.items():
            rates[name].append(count_calls(call, seconds))
    shown = [f"dagman {statistics.median(rates['dagman']):.0f}"]
    for name in list(arms)[1:]:
        ratio = statistics.median(our / their for our, their in zip(rates["dagman"], rates[name], strict=True))
        shown.append(f"{name} {statistics.median(rates[name]):.0f} (x{ratio:.2f})")
    bytes_ = f"{row.size / 2**20:.2f} MiB to nnssl's {theirs.stat().st_size / 2**20:.2f}"
    print(f"crops   {source.name:28} {', '.join(shown)} of {' x '.join(map(str, size))} a second; {bytes_}", flush=True)


def write_as_nnssl(voxels: np.ndarray, path: Path) -> None:
    """Voxels as nnssl keeps them: float32 of mean 0 and deviation 1, zstd at level 8."""
    values = voxels.astype(np.float32)
    values = (values - values.mean()) / max(float(values.std()), 1e-8)
    path.unlink(missing_ok=True)
    blocks = tuple(map(min, NNSSL_BLOCK, values.shape))
    chunks = tuple(max(block, min(chunk, extent)) for block, chunk, extent in zip(blocks, NNSSL_CHUNK, values.shape, strict=True))
    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1}
    blosc2.asarray(np.ascontiguousarray(values), chunks=chunks, blocks=blocks, cparams=settings, urlpath=str(path), mode="w")


def compare_bytes(source: Source, folder: Path) -> None:
    """Bytes in the store as a share of the .nii.gz: the source itself, or what its voxels take as one."""
    (series,) = find_series(source.path).series
    result = prepare_series(Task(series, "benchmark"), folder, Preparation())
    assert isinstance(result, Prepared), result
    scan = read_series(series)
    packed = folder / "packed.nii.gz"
    if series.kind == "nifti":
        size = series.files[0].stat().st_size
    else:
        nibabel.save(nibabel.Nifti1Image(scan.voxels, scan.affine.matrix), packed)
        size = packed.stat().st_size
    spacing = " x ".join(f"{value:.3g}" for value in scan.spacing)
    stored = prepare_scan(scan, Preparation()).voxels.size
    share = f"{result.row.size / size:.1%} of {size / 2**20:.2f} MiB as .nii.gz"
    print(f"bytes   {source.name:28} {share}; {stored / scan.voxels.size:.2f} voxels at 2 mm for one of {spacing} mm", flush=True)


def measure_memory(folder: Path, slices: int, side: int) -> None:
    """Peak memory of a fresh process that prepares, embeds, and predicts one long scan, in int16 sizes of the scan."""
    scan = write_synthetic(folder / "long.nii.gz", slices, side)
    for count in (3, MANY):
        write_model(folder / f"model-{count}", count)
    commands = {
        "none (dagman --version)": ["--version"],
        "prepare": ["prepare", str(scan), "--out", str(folder / "long-store"), "--workers", "1"],
        "embed": ["embed", "scratch:tiny", str(scan), "--out", str(folder / "long.parquet"), "--device", "cpu"],
    }
    for count in (3, MANY):
        places = str(folder / f"model-{count}"), str(scan), "--out", str(folder / f"predicted-{count}")
        commands[f"predict, {count} structures"] = ["predict", *places, "--device", "cpu"]
    for name, arguments in commands.items():
        ended = subprocess.run([sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True)
        peak = next((int(line.split()[2]) for line in ended.stderr.splitlines() if line.startswith("peak KiB")), None)
        if ended.returncode or peak is None:
            raise SystemExit(f"dagman {name} failed:\n{ended.stdout}{ended.stderr}")
        share = peak * 1024 / (2 * side * side * slices)
        print(f"memory  {side} x {side} x {slices}: {name:24} {peak / 2**20:.2f} GiB, {share:.2f} times the int16 scan", flush=True)


def write_model(folder: Path, count: int) -> None:
    """A segmentation model of so many structures as `dagman segment` keeps one, with weights as they are drawn."""
    from dagman.encoder.loading import load_encoder
    from dagman.tables.structures import Structure
    from dagman.tasks.segment.model import adapt_encoder, save_model, start_model

    encoder = adapt_encoder(load_encoder("scratch:tiny", device="cpu", precision="fp32"), side=SIDE, spacing=2.0)
    structures = [Structure(name=f"structure {value}", values=(value,)) for value in range(1, count + 1)]
    save_model(start_model(encoder, structures), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scan", type=Path, nargs="+", default=[], help="files, or folders with one DICOM series each")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="a round and arm of crops")
    parser.add_argument("--slices", type=int, default=300, help="of the synthetic scan")
    parser.add_argument("--long", type=int, default=1000, help="slices of the scan whose memory is measured")
    parser.add_argument("--side", type=int, default=512, help="voxels of a side of the synthetic scans")
    parser.add_argument("--torso", type=int, default=3, help="scans of torso")
    arguments = parser.parse_args()
    if {"time", "crops"} & set(arguments.parts):
        import torch

        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(arguments.parts) != {"memory"}:
            given = (arguments.data, arguments.scan, arguments.slices, arguments.side, arguments.torso)
            sources = list_sources(folder, *given)
            for source in sources if "time" in arguments.parts else ():
                compare_times(source, folder, arguments.rounds)
            for source in sources if "crops" in arguments.parts else ():
                compare_crops(source, folder, arguments.rounds, arguments.seconds)
            for source in sources if "bytes" in arguments.parts else ():
                compare_bytes(source, folder)
        if "memory" in arguments.parts:
            measure_memory(folder, arguments.long, arguments.side)


if __name__ == "__main__":
    main()
