"""Run the jobs of a study, one at a time on each device; finished jobs are skipped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from dagman.errors import RunError
from dagman.records.counts import count_noun
from dagman.records.journal import append_row, read_rows
from dagman.study.plan import Job

JOURNAL = "jobs.jsonl"
"""Journal with one row per job that ended: name, seconds, exit code."""


def run_jobs(
    jobs: Sequence[Job], out: Path, *, devices: Sequence[str] = ("auto",), on_job: Callable[[Job, str], None] | None = None
) -> None:
    """Run every unfinished job: all pretrainings, then all tasks. A job that fails does not stop the others of its kind.

    Args:
        jobs: The jobs.
        out: Folder of the study.
        devices: Devices, each of which runs one job at a time.
        on_job: Called with a job and "starts", "finished", "skipped" or "failed".

    Raises:
        RunError: Some jobs failed; the message has the first of them, with the last line of its output.
    """
    report = on_job or (lambda job, state: None)
    failed: list[tuple[Job, str]] = []
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)

    def run(job: Job) -> None:
        if job.finished:
            report(job, "skipped")
            return
        device = free.get()
        try:
            report(job, "starts")
            began = time.perf_counter()
            done = subprocess.run(_name_command(job, device), capture_output=True, text=True, check=False, env=_isolate(device))
            row = {"name": job.name, "seconds": round(time.perf_counter() - began, 1), "code": done.returncode}
            append_row(out / JOURNAL, row)
            if done.returncode:
                lines = [line.strip("│ ") for line in done.stderr.splitlines() if any(c.isalpha() for c in line)]
                failed.append((job, lines[-1] if lines else f"exit code {done.returncode}"))
            report(job, "failed" if done.returncode else "finished")
        finally:
            free.put(device)

    out.mkdir(parents=True, exist_ok=True)
    for kind in ("pretrain", "task"):
        with ThreadPoolExecutor(len(devices)) as pool:
            list(pool.map(run, [job for job in jobs if job.kind == kind]))
        if failed:
            job, reason = failed[0]
            what = f"{count_noun(len(failed), 'job')} of the study failed, {job.name} first: {reason.removeprefix('dagman: ')}"
            raise RunError(what, where=out, do=f"Fix it and repeat the study, or run it alone: {job.command}")


def read_seconds(out: Path) -> dict[str, float]:
    """Read the total seconds of each job over all its starts, also failed ones."""
    seconds: dict[str, float] = {}
    for row in read_rows(out / JOURNAL):
        seconds[row["name"]] = seconds.get(row["name"], 0.0) + float(row["seconds"])
    return seconds


def write_slurm(jobs: Sequence[Job], out: Path) -> list[Path]:
    """Write batch scripts for Slurm: an array of pretrainings, an array of tasks, and a script that submits both in order."""
    folder = out / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    kinds = [kind for kind in ("pretrain", "task") if any(job.kind == kind for job in jobs)]
    for kind in kinds:
        commands = [job.command for job in jobs if job.kind == kind]
        lines = [
            "#!/bin/bash",
            f"#SBATCH --job-name=dagman-{kind}",
            f"#SBATCH --array=0-{len(commands) - 1}",
            "#SBATCH --gres=gpu:1",
            "#SBATCH --cpus-per-task=8",
            "#SBATCH --time=24:00:00",
            f"#SBATCH --output={kind}-%a.log",
            "commands=(",
            *(f"  {_quote(command)}" for command in commands),
            ")",
            'eval "${commands[$SLURM_ARRAY_TASK_ID]}"',
        ]
        path = folder / f"{kind}.sbatch"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        written.append(path)
    submit = ["#!/bin/bash", "set -e", 'cd "$(dirname "$0")"', f"first=$(sbatch --parsable {kinds[0]}.sbatch)"]
    submit += [f'sbatch --dependency=afterok:"$first" {kind}.sbatch' for kind in kinds[1:]]
    path = folder / "submit.sh"
    path.write_text("\n".join(submit) + "\n", encoding="utf-8")
    return [*written, path]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _name_command(job: Job, device: str) -> list[str]:
    words = [sys.executable, "-m", "dagman", *job.words]
    if device != "auto" and not device.startswith("cuda:"):
        words += ["--set", f"train.device={device}"] if job.kind == "pretrain" else ["--device", device]
    return words


def _isolate(device: str) -> dict[str, str]:
    # CUDA devices are selected by visibility, because every command uses cuda:0.
    visible = {"CUDA_VISIBLE_DEVICES": device.partition(":")[2]} if device.startswith("cuda:") else {}
    return {**os.environ, **visible}
