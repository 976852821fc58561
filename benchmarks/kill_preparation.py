"""Kill `dagman prepare` at random moments, repeat the command, and compare the store with one that was never killed.

    python benchmarks/kill_preparation.py --kills 30 --seconds 1200

The moments follow from the seed: shares of the time that a whole preparation takes, in every third kill from the store's first file
on (the start of Python before that writes nothing), in the others from its first scan on. Every second kill takes the writer alone,
so that its workers outlive it for a moment; the others take the whole group. Compared byte by byte: the scans, the manifest,
`store.json`, `rejected.csv`; and that nothing else is left but the journal, the record of the command and the lock. Prints the
counts as JSON; exit code 1 if a store differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np

from dagman.randomness import generator

_OWN_EACH_TIME = ("journal.jsonl", "command.json", ".lock")
"""Holds times, or the order in which workers were ready."""
_FIRST = ("store.json", "scans")
"""What the time of a kill is counted from."""


def write_cohort(folder: Path, scans: int) -> None:
    """Bodies with noise as .nii.gz, one of them twice, and two files that are refused."""
    folder.mkdir(parents=True)
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, side) for side in (112, 96, 64)), indexing="ij")
    body = np.where((x / 0.7) ** 2 + (y / 0.6) ** 2 < 1, 40.0, -1000.0)
    for number in range(scans):
        noise = generator(0, "killed body", number).normal(0, 10, body.shape)
        image = nibabel.Nifti1Image(np.rint(body + noise).astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
        nibabel.save(image, folder / f"body{number:03}.nii.gz")
    shutil.copy(folder / "body000.nii.gz", folder / "copy.nii.gz")
    (folder / "empty.nii.gz").write_bytes(b"")
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), folder / "air.nii.gz")


def read_store(out: Path) -> dict[str, bytes]:
    """The bytes of every file that two preparations of the same scans must have in common."""
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths if path.name not in _OWN_EACH_TIME}


def start(scans: Path, out: Path, key: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own."""
    words = [sys.executable, "-m", "dagman", "prepare", scans, "--out", out, "--workers", "2", "--key", key]
    return subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for(process: subprocess.Popen[bytes], path: Path) -> float:
    """The time at which a file or folder of the store is there, or the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)
    return time.monotonic()


def kill_once(scans: Path, out: Path, key: Path, first: str, delay: float, *, alone: bool) -> tuple[int, str]:
    """How many scans' files were there when it was killed; and how the repeated command ended, "" if well."""
    process = start(scans, out, key)
    wait_for(process, out / first)
    time.sleep(delay)
    (process.kill if alone else lambda: os.killpg(process.pid, signal.SIGKILL))()
    process.communicate()
    written = len(list((out / "scans").rglob("*.b2nd"))) if (out / "scans").exists() else 0
    again = start(scans, out, key)
    said = again.communicate()[1].decode()
    return written, said if again.returncode else ""


def main() -> None:
    """Make the cohort, prepare it once undisturbed, then kill and repeat; print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1200, help="No kill begins later than this.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    differing = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans, key = folder / "scans", folder / "mine.key"
        write_cohort(scans, options.scans)
        whole = start(scans, folder / "whole", key)
        began = {first: wait_for(whole, folder / "whole" / first) for first in _FIRST}
        whole.communicate()
        seconds, expected = {first: time.monotonic() - at for first, at in began.items()}, read_store(folder / "whole")
        end = time.monotonic() + options.seconds
        for number in range(options.kills):
            if time.monotonic() > end:
                break
            first = _FIRST[min(number % 3, 1)]
            delay = float(generator(options.seed, "kill", number).uniform(0, seconds[first]))
            out = folder / f"killed{number}"
            written, said = kill_once(scans, out, key, first, delay, alone=number % 2 == 0)
            counts["none written" if not written else "some written" if written < options.scans else "all written"] += 1
            if said or read_store(out) != expected:
                differing.append({"kill": number, "delay": round(delay, 3), "written": written, "said": said.strip()[-200:]})
            shutil.rmtree(out)
    outcome = {
        "kills": counts.total(),
        "seconds": {first: round(value, 2) for first, value in seconds.items()},
        "when killed": dict(counts),
        "differ": differing,
    }
    print(json.dumps(outcome, indent=2))
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
