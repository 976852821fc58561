"""Views a second of one run by one process and by several, with the same work: what sharing a step costs or gains.

Each is a real run under torchrun on a store of synthetic bodies; the pace is the median of its steps after the first three. On CPUs
every process has one thread, so that two processes are two cores; with several CUDA devices each rank has its own.
Example: python benchmarks/devices.py --ranks 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dagman.records.journal import read_rows
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.testing import make_body, write_nifti

WARM_UP = 3


def make_store(folder: Path) -> Path:
    (folder / "scans").mkdir()
    for seed, shape in enumerate([(80, 76, 72), (72, 80, 70), (76, 74, 78), (84, 72, 74)]):
        write_nifti(folder / "scans" / f"body{seed}.nii.gz", make_body(shape, seed), 4.0)
    return prepare_store(folder / "scans", folder / "store", Preparation(spacing=4.0), workers=1).path


def run_ranks(store: Path, out: Path, ranks: int, arguments: argparse.Namespace) -> list[dict[str, float]]:
    settings = [f"train.steps={arguments.steps}", f"train.batch={arguments.batch}", f"train.device={arguments.device}"]
    settings += ["view.spacing=4", "train.monitor_every=100000", "train.monitor_views=2", "train.checkpoint_every=100000"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "dagman",
        "pretrain",
    ]
    command += [str(store), "--out", str(out), "--size", arguments.size, *(word for one in settings for word in ("--set", one))]
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if arguments.device == "cpu" else {})}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return read_rows(out / "timing.jsonl")[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2], help="numbers of processes; their views a step stay the same"
    )
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--batch", type=int, default=4, help="views a step over all processes")
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        store = make_store(Path(place))
        load = os.getloadavg()[0]
        found = []
        for ranks in arguments.ranks:
            rows = run_ranks(store, Path(place) / f"run-{ranks}", ranks, arguments)
            pace = statistics.median(row["views_per_s"] for row in rows)
            waiting = statistics.mean(row["waiting_share"] for row in rows)
            exchanged = statistics.median(row.get("communicated_mib", 0.0) for row in rows)
            found.append({"ranks": ranks, "views_per_s": pace, "ratio": pace / found[0]["views_per_s"] if found else 1.0})
            found[-1] |= {"waiting_share": waiting, "exchanged_mib": exchanged}
    if arguments.json:
        print(json.dumps({"size": arguments.size, "batch": arguments.batch, "load_before": load, "rows": found}))
        return
    print(f"{arguments.size}, {arguments.batch} views a step, {arguments.device}, {os.cpu_count()} cores, load {load:.1f} before")
    for row in found:
        print(
            f"{row['ranks']} processes: {row['views_per_s']:.2f} views/s, {row['ratio']:.2f} times the first; "
            f"waiting {row['waiting_share']:.1%}; {row['exchanged_mib']:.1f} MiB a step and rank"
        )


if __name__ == "__main__":
    main()
