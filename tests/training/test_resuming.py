"""A run that is stopped or killed at any step, and resumed, is bit for bit the run that went through.

Weights of student, teacher and heads, optimiser, centres, queues and temperatures, and the bytes of `metrics.jsonl` and
`monitors.jsonl`. On the CPU, with one thread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from dagman.errors import RunError
from dagman.records.hashes import hash_bytes
from dagman.records.journal import read_rows
from dagman.training.pretraining import pretrain
from dagman.training.run import Run
from dagman.training.start.identity import FREE_TO_CHANGE, LATER_SETTINGS, list_settings, refuse_other_store

STEPS = 6
COMPARED = ("metrics.jsonl", "monitors.jsonl", "encoder/model.safetensors", "encoder/config.json", "settings.toml")


def _read_result(run: Path, steps: int = STEPS) -> dict[str, bytes]:
    """Every byte of a finished run that must not depend on how it was reached."""
    last = run / "checkpoints" / f"step-{steps:06d}"
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


_RECORDED = Path(__file__).parents[1] / "made_before" / "run"
FINGERPRINTS = ("1eee5fd5d27712f81e89bcb992877c48", "92f3df1483cf993aff5f7497c68acf76", "308f7d7981da0e67ebbb2c661b36d8ea")
"""Of the settings of `made_before/run`, by the releases before `train.kernels`, before `train.recompute`, and after them."""


def _check(before: object, settings) -> None:
    state = {"store": "a", "grid": "b", "scans": 2}
    refuse_other_store(Path("run"), state | {"settings": before}, state, settings)


def test_a_run_recorded_by_any_earlier_release_is_known_again():
    settings = Run(_RECORDED).settings
    for fingerprint in FINGERPRINTS:
        _check(fingerprint, settings)
        # What rounds in another way does not make it another run.
        train = settings.train.model_copy(update={"kernels": "triton", "recompute": 2, "skip_hidden": True})
        _check(fingerprint, settings.model_copy(update={"train": train}))
        with pytest.raises(RunError, match=r"was changed after the last checkpoint was written: settings\.toml"):
            _check(fingerprint, settings.model_copy(update={"seed": 5}))


def test_a_setting_that_a_checkpoint_does_not_name_was_at_its_default(make_settings):
    settings = make_settings()
    held = json.loads(json.dumps(list_settings(settings)))
    _check(held, settings)
    del held["optim.beta2"]
    _check(held, settings)
    _check(held, make_settings("train.precision=fp32", "train.micro_batch=2", *(f"{key}={_OTHER[key]}" for key in LATER_SETTINGS)))
    with pytest.raises(RunError, match=r"optim\.clip from 3\.0 to 1\.0; optim\.beta2 from 0\.999 to 0\.95\. Restore"):
        _check(held, make_settings("optim.beta2=0.95", "optim.clip=1"))


_OTHER = {
    "train.kernels": "triton",
    "train.recompute": 2,
    "train.compile": "on",
    "train.read_after": 1,
    "train.skip_hidden": "true",
}


def test_a_run_of_an_earlier_release_goes_on_as_it_was_and_says_what_rounds_differently(store, tiny, tmp_path):
    options = [*tiny, "train.batch=4", "train.steps=2", "train.checkpoint_every=1", "train.skip_hidden=false"]
    pretrain(store.path, tmp_path / "whole", assignments=options)
    for name in ("as it was", "changed"):
        out = tmp_path / name
        shutil.copytree(tmp_path / "whole", out)
        shutil.rmtree(out / "checkpoints" / "step-000002")
        # As a release wrote it that knew none of these settings: see FINGERPRINTS.
        text = (out / "settings.toml").read_text()
        for key in LATER_SETTINGS:
            text = re.sub(rf"^{key.removeprefix('train.')} = .*\n", "", text, flags=re.MULTILINE)
        (out / "settings.toml").write_text(text)
        path = out / "checkpoints" / "step-000001" / "state.json"
        state = json.loads(path.read_text())
        for added in ("kernels", "compile", "read after", "hidden windows", "micro-batch", "checksum"):
            del state[added]
        values = Run(out).settings.model_dump(mode="json")
        for key in FREE_TO_CHANGE | {"view.modality", *LATER_SETTINGS}:
            section, _, field = key.rpartition(".")
            del values[section][field]
        path.write_text(json.dumps(state | {"settings": hash_bytes(json.dumps(values, sort_keys=True).encode())}))
    pretrain(store.path, tmp_path / "as it was", resume=True)
    ours, theirs = (_read_result(tmp_path / name, 2) for name in ("as it was", "whole"))
    assert ours.pop("settings.toml") != theirs.pop("settings.toml")
    assert ours == theirs
    # It may be resumed in another way, which a checkpoint written since then names.
    told: list[str] = []
    changes = ["train.skip_hidden=true", "train.micro_batch=2"]
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-000001", tmp_path / "new", dirs_exist_ok=True)
    shutil.copy(tmp_path / "new" / "state.json", tmp_path / "changed" / "checkpoints" / "step-000001" / "state.json")
    pretrain(
        store.path,
        tmp_path / "changed",
        resume=True,
        assignments=changes,
        on_event=lambda name, values: told.append(values["text"]) if name == "warning" else None,
    )
    wanted = "hidden windows: skipped, but computed up to here, so the weights will differ from those of an uninterrupted run."
    assert wanted in told
    assert "micro-batch: 2, but 4 up to here, so the weights will differ from those of an uninterrupted run." in told
    ours, theirs = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("changed", "whole"))
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
