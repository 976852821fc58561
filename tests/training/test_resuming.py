"""A run that is stopped or killed at any step, and resumed, is bit for bit the run that went through.

Weights of student, teacher and heads, optimiser, centres, queues and temperatures, and the bytes of `metrics.jsonl` and
`monitors.jsonl`. On the CPU, with one thread.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from dagman.records.hashes import hash_bytes
from dagman.records.journal import read_rows
from dagman.training.pretraining import pretrain
from dagman.training.run import Run
from dagman.training.start.identity import FREE_TO_CHANGE, LATER_SETTINGS, hash_settings

STEPS = 6
COMPARED = ("metrics.jsonl", "monitors.jsonl", "encoder/model.safetensors", "encoder/config.json", "settings.toml")


def _read_result(run: Path) -> dict[str, bytes]:
    """Every byte of a finished run that must not depend on how it was reached."""
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    files = [*(run / name for name in COMPARED), *sorted(last.glob("*.safetensors")), *sorted((run / "gallery").iterdir())]
    result = {str(path.relative_to(run)): path.read_bytes() for path in files}
    state = json.loads((last / "state.json").read_text())
    return result | {"temperatures": json.dumps(state["log_temperatures"]).encode()}


@pytest.fixture(scope="module")
def whole(store, tiny, tmp_path_factory) -> Path:
    """A run of six steps that kept a checkpoint of each."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(store.path, out, assignments=[*tiny, "train.checkpoint_every=1", "train.keep_checkpoints=9"])
    return out


@pytest.mark.parametrize("step", range(STEPS))
def test_a_run_killed_after_its_checkpoint_at_any_step_goes_on_bit_for_bit(whole, store, tmp_path, step):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(out / "checkpoints" / f"step-{later:06d}")
    # Killed in the middle of a line, and of files that were to be renamed.
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "tot')
    (out / "gallery" / ".0a1b2c3d.partial.step-000004.safetensors").write_bytes(b"half")
    (out / "checkpoints" / ".0a1b2c3d.partial.step-000005").mkdir()
    (out / "encoder").rename(out / ".0a1b2c3d.old.encoder")

    told = []
    run = pretrain(store.path, out, resume=True, on_event=lambda name, values: told.append((name, values)))

    assert [values["step"] for name, values in told if name == "step"] == list(range(step + 1, STEPS + 1))
    assert _read_result(out) == _read_result(whole)
    assert not [*out.rglob("*.partial.*"), *out.rglob("*.old.*")]
    assert [row["step"] for row in run.steps] == list(range(1, STEPS + 1))
    assert [row["step"] for row in run.timings] == list(range(1, STEPS + 1))
    assert [row["step"] for row in run.monitors] == [0, 2, 4, 6]
    assert run.warnings == Run(whole).warnings


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_stopped_by_ctrl_c_goes_on_bit_for_bit(whole, store, tiny, tmp_path, step):
    out = tmp_path / "run"

    def interrupt(name, values):
        if name == "step" and values["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = pretrain(store.path, out, assignments=[*tiny, "train.checkpoint_every=3", "train.keep_checkpoints=9"], on_event=interrupt)
    assert run.last_step == step
    assert signal.getsignal(signal.SIGINT) is before
    # checkpoint_every changes no weight, so a resume may change it.
    pretrain(store.path, out, resume=True, assignments=["train.checkpoint_every=1"])
    ours, theirs = _read_result(out), _read_result(whole)
    assert ours.pop("settings.toml") != theirs.pop("settings.toml")
    assert ours == theirs


def test_a_run_whose_gradients_are_accumulated_goes_on_bit_for_bit(store, tiny, tmp_path):
    options = [*tiny, "train.batch=6", "train.micro_batch=2", "train.checkpoint_every=2", "train.keep_checkpoints=9"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    pretrain(store.path, whole, method="dagman-clean-teacher", assignments=options)
    shutil.copytree(whole, out)
    for later in (4, 6):
        shutil.rmtree(out / "checkpoints" / f"step-{later:06d}")
    pretrain(store.path, out, resume=True)
    assert _read_result(out) == _read_result(whole)


def test_a_finished_run_that_is_resumed_stays_as_it_is(whole, store, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "command.json"}
    pretrain(store.path, out, resume=True)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "command.json"}
    assert after == before


@pytest.mark.slow
def test_loader_processes_change_no_weight(whole, store, tiny, tmp_path):
    options = [*tiny, "train.checkpoint_every=1", "train.keep_checkpoints=9", "train.workers=2"]
    pretrain(store.path, tmp_path / "run", assignments=options)
    ours, theirs = _read_result(tmp_path / "run"), _read_result(whole)
    assert ours.pop("settings.toml") != theirs.pop("settings.toml")
    assert ours == theirs


def test_schedules_follow_the_global_step_across_a_resume(whole):
    rows = read_rows(whole / "metrics.jsonl")
    momenta = [row["momentum"] for row in rows]
    teacher = Run(whole).settings.teacher
    assert (momenta[0], momenta[-1]) == (teacher.momentum, teacher.momentum_end)
    assert momenta == sorted(momenta)
    assert [row["lr"] for row in rows] == sorted((row["lr"] for row in rows), reverse=True)
    assert rows[-1]["lr"] == pytest.approx(1e-6)


def test_settings_of_a_later_release_leave_the_fingerprint_of_an_earlier_one(make_settings):
    settings = make_settings()
    values = settings.model_dump(mode="json")
    for key in FREE_TO_CHANGE | {"view.modality", *LATER_SETTINGS}:
        section, _, name = key.rpartition(".")
        del values[section][name]
    assert hash_settings(settings) == hash_bytes(json.dumps(values, sort_keys=True).encode())
    assert hash_settings(make_settings("train.skip_hidden=true")) != hash_settings(settings)
