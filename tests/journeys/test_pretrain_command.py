"""`dagman pretrain` from the command line: killed or stopped at any moment it resumes to the same bytes; mistakes are one line.

Runs of twelve steps on three small synthetic bodies.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dagman.cli.application import main
from dagman.records.journal import read_rows
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.training.checkpoints import list_checkpoints

pytestmark = pytest.mark.journey

STEPS = 12
SETTINGS = f"""
[view]
side = 32
spacing = 4.0
[model]
embed = 8
depths = [1, 1, 1, 1]
heads = [1, 2, 2, 4]
sa_heads = 2
[projector]
hidden = 16
bottleneck = 8
prototypes = 16
[train]
steps = {STEPS}
checkpoint_every = 3
monitor_every = 3
monitor_views = 2
precision = "fp32"
device = "cpu"
"""
_DEADLINE_S = 600


def _write_body(path: Path, shape: tuple[int, int, int], seed: int) -> None:
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.85) ** 2 < 1, 40.0, -1000.0) - 800 * ((x / 0.4) ** 2 + (y / 0.4) ** 2 < 1)
    hu += np.random.default_rng(seed).normal(0, 20, shape)
    image = nibabel.Nifti1Image(np.rint(hu).astype(np.int16), np.diag([4.0, 4.0, 4.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scans, their store, and a settings file."""
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "scans").mkdir()
    for seed, shape in enumerate([(40, 38, 36), (36, 40, 34), (44, 36, 36)]):
        _write_body(folder / "scans" / f"body{seed}.nii.gz", shape, seed)
    prepare_store(folder / "scans", folder / "store", Preparation(spacing=4.0), workers=1)
    (folder / "run.toml").write_text(SETTINGS)
    return folder


def _start(place: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dagman", "pretrain", place / "store", "--out", out, "--config", place / "run.toml", *options]
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _finish(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=_DEADLINE_S)
    assert process.returncode == 0, stderr
    return stdout


def _signal_at(process: subprocess.Popen[str], out: Path, steps: int, number: int) -> None:
    """Send a signal to the process and all it has started, as a terminal does, once so many steps are written."""
    deadline = time.monotonic() + _DEADLINE_S
    while len(read_rows(out / "metrics.jsonl")) < steps:
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Waits for the process, not for the clock: should it end, there is nothing to wait for.
            pytest.fail(f"ended with {process.wait(timeout=0.02)} before step {steps}: {process.communicate()[1]}")
    os.killpg(process.pid, number)


def _read_result(out: Path) -> dict[str, bytes]:
    last = out / "checkpoints" / f"step-{STEPS:06d}"
    files = [*sorted(last.glob("*.safetensors")), *sorted((out / "gallery").iterdir()), *sorted((out / "encoder").iterdir())]
    return {str(path.relative_to(out)): path.read_bytes() for path in [*files, out / "metrics.jsonl", out / "monitors.jsonl"]}


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """The run that went through, through the command's own function."""
    out = place / "whole"
    assert _call("pretrain", place / "store", "--out", out, "--config", place / "run.toml") == 0
    return out


def _call(*arguments: object) -> int:
    """The command line in this process; its exit code."""
    before, sys.argv = sys.argv, ["dagman", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_resumes_to_the_bytes_of_one_that_went_through(place, whole, tmp_path):
    step = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID", "alone")).randint(1, STEPS // 2)
    out = tmp_path / "run"
    process = _start(place, out)
    _signal_at(process, out, step, signal.SIGKILL)
    process.communicate(timeout=_DEADLINE_S)
    assert process.returncode == -signal.SIGKILL
    assert step <= len(read_rows(out / "metrics.jsonl")) < STEPS, f"killed at step {step}"
    # The same command again; nothing else is to be known.
    arguments = ["pretrain", place / "store", "--out", out, "--config", place / "run.toml"]
    assert _call(*arguments) == 0
    assert _read_result(out) == _read_result(whole), f"killed at step {step}"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_the_step_and_leaves_a_run_that_goes_on(place, whole, tmp_path):
    out = tmp_path / "run"
    process = _start(place, out, "--set", "train.workers=1")
    _signal_at(process, out, 2, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=_DEADLINE_S)
    assert process.returncode == 130, stderr
    assert [line for line in stderr.splitlines() if not re.match(r"step \d+ of \d+: ", line)] == []
    (done,) = list_checkpoints(out)[-1:]
    assert f"Stopped at step {done} of {STEPS}; repeat the command to resume." in " ".join(stdout.split())
    assert 2 <= done < STEPS
    assert _call("pretrain", place / "store", "--out", out, "--resume", "--set", "train.workers=0") == 0
    assert _read_result(out) == _read_result(whole)


def test_a_run_killed_before_its_first_checkpoint_begins_again(place, whole, tmp_path):
    out = tmp_path / "run"
    process = _start(place, out)
    _signal_at(process, out, 1, signal.SIGKILL)
    process.communicate(timeout=_DEADLINE_S)
    for folder in ("checkpoints", "encoder"):
        # Whether or not it had come so far: what is left is a run without one.
        for path in sorted((out / folder).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert _call("pretrain", place / "store", "--out", out, "--resume") == 0
    assert _read_result(out) == _read_result(whole)


def test_the_command_tells_the_arithmetic_the_choices_and_what_comes_next(place, tmp_path, capsys):
    out = tmp_path / "run"
    assert _call("pretrain", place / "scans", "--out", out, "--config", place / "run.toml", "--set", "train.steps=2") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "3 series to prepare: about" in text
    assert "store: 3 scans prepared" in text
    assert "recipe R, for few views per step: 4 views per step, fewer than 32" in text
    assert "views: 32^3 voxels (128 mm), 4 per step; 2 steps = 4 pairs = 1.3 per scan" in text
    assert "precision fp32 requested" in text
    assert f"Next: dagman report {out}" in text
    assert list((out / "store").glob("scans/*/*.b2nd"))
    assert _call("pretrain", place / "store", "--out", out, "--resume", "--json") == 0
    told = capsys.readouterr()
    outcome = json.loads(told.out)
    assert (outcome["run"], outcome["step"], outcome["steps"]) == (str(out), 2, 2)
    assert "resumed at step 2 of 2" in told.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{place}/store", "--out", "{out}", "--resume"], "holds no run to resume"),
        (["{place}/store", "--out", "{place}/scans"], "scans: exists and is not a run"),
        (["{place}/store", "--out", "{place}/run.toml"], "run.toml: is a file"),
        (["{place}/store", "--out", "{place}/whole", "--resume", "--set", "seed=3"], "seed is 0 in the run and 3 here"),
        (["{place}/store", "--out", "{out}", "--size", "tiney"], "unknown size preset 'tiney'. Nearest: tiny."),
        (["{place}/store", "--out", "{out}", "--method", "dagmann"], "unknown method preset 'dagmann'. Nearest: dagman."),
        (["{place}/store", "--out", "{out}", "--set", "maskng.ratio=0.5"], "maskng: unknown key. Nearest: masking."),
        (["{place}/store", "--out", "{out}", "--set", "train.steps"], "is not an assignment"),
        (["{place}/store", "--out", "{out}", "--config", "{place}/no.toml"], "no.toml: cannot read the settings"),
        (["{place}/store", "--out", "{out}", "--set", "view.side=160"], "no scan is large enough for a view of 160 voxels"),
        (["{place}/store", "--out", "{out}", "--set", "train.device=tpu"], "device 'tpu': is not a device"),
        (["{place}/absent", "--out", "{out}"], "absent: does not exist"),
        (["{place}/store/rejected.csv", "--out", "{out}"], "rejected.csv"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(place, whole, tmp_path, capsys, arguments, text):
    capsys.readouterr()
    code = _call("pretrain", *(one.format(place=place, out=tmp_path / "run") for one in arguments))
    told = capsys.readouterr()
    assert code == 2
    assert text in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert told.err.startswith("dagman: ")
    assert "Traceback" not in told.err + told.out


def test_help_ends_with_an_example(capsys):
    assert _call("pretrain", "--help") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[-1].strip().startswith("Example: dagman pretrain store --out run")
