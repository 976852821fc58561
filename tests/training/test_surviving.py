"""What a run survives: a damaged last checkpoint, a step that is not finite, an unreadable scan, a job that is taken away."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from dagman import devices
from dagman.errors import RunError
from dagman.records.journal import read_rows
from dagman.store.format import locate_scan
from dagman.training import learner, trainer
from dagman.training.checkpoints import list_checkpoints
from dagman.training.learner import Learner
from dagman.training.pretraining import pretrain
from dagman.training.recovery.background import Background
from dagman.training.recovery.replay import replay_step
from dagman.training.run import Run

OPTIONS = ("train.steps=4", "train.checkpoint_every=1", "train.keep_checkpoints=9", "train.monitor_every=9")


@pytest.fixture(scope="module")
def whole(store, tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("survived") / "run"
    pretrain(store.path, out, assignments=[*tiny, *OPTIONS])
    return out


def _last(run: Path) -> Path:
    return run / "checkpoints" / f"step-{list_checkpoints(run)[-1]:06d}"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize(
    ("name", "damage", "text"),
    [
        ("student.safetensors", _truncate, "the checksum of student.safetensors differs from that in state.json"),
        ("heads.safetensors", _empty, "the checksum of heads.safetensors differs from that in state.json"),
        ("optimizer.safetensors", _flip, "the checksum of optimizer.safetensors differs from that in state.json"),
        ("teacher.safetensors", Path.unlink, "teacher.safetensors is missing"),
        ("state.json", _truncate, "state.json cannot be read (Unterminated string"),
        ("state.json", _empty, "state.json cannot be read (Expecting value"),
        ("state.json", _flip, "state.json does not match its own checksum"),
        ("state.json", Path.unlink, "state.json is missing"),
    ],
)
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_and_it_is_said(whole, store, tmp_path, name, damage, text):
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(_last(out))
    damage(_last(out) / name)
    run = pretrain(store.path, out, resume=True)
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (out / "encoder" / "model.safetensors").read_bytes() == (whole / "encoder" / "model.safetensors").read_bytes()
    (told,) = [row["text"] for row in run.warnings if row["key"].startswith("damaged")]
    assert told.startswith(f"The checkpoint step-000003 is damaged: {text}")
    assert told.endswith("The previous one is used instead; the damaged one was renamed to damaged-step-000003.")


def _break_at(monkeypatch, steps: set[int]) -> None:
    """The losses of these steps, from 0, are not a number; a micro-batch a step."""
    plain = learner.accumulate_gradients

    def broken(student, *rest):
        losses = plain(student, *rest)
        if broken.step in steps:
            losses.parts["amip"].fill_(torch.nan)
            losses.total.fill_(torch.nan)
        return losses

    advance = Learner.advance

    def count(self, pairs, step, *rest):
        broken.step = step
        return advance(self, pairs, step, *rest)

    monkeypatch.setattr(learner, "accumulate_gradients", broken)
    monkeypatch.setattr(Learner, "advance", count)


def test_a_step_that_is_not_finite_is_kept_and_skipped_and_can_be_replayed_alone(store, tiny, tmp_path, monkeypatch, call_dagman):
    out, told = tmp_path / "run", []
    _break_at(monkeypatch, {2})
    options = [*tiny, *OPTIONS[:1], "train.checkpoint_every=9", "train.monitor_every=9"]
    run = pretrain(store.path, out, assignments=options, on_event=lambda name, values: told.append((name, values)))
    # No checkpoint was there, so the run began again; then it left out the step.
    assert [values["step"] for name, values in told if name == "step"] == [1, 2, 1, 2, 4]
    assert [row["step"] for row in run.steps] == [1, 2, 4]
    assert run.last_step == 4
    (text,) = [row["text"] for row in run.warnings if row["key"] == "skipped-3"]
    assert text.startswith("The loss or its gradient is not finite at step 3, on scans ")
    assert text.endswith(
        "the run returned to step 0, and skips the failed step (1 of at most 3). "
        f"Recompute it (dagman replay {out} 3), check these scans, or lower optim.lr."
    )
    state = json.loads((out / "broken" / "step-000003" / "state.json").read_text())
    assert state["seed"] == 0
    assert state["found"]["total"] == "nan"
    assert {view["scan"] for pair in state["crops"] for view in pair} <= {row.id for row in store.rows}
    monkeypatch.undo()
    found = replay_step(out, 3)
    assert found.is_finite
    # The step as the run would have taken it: with the weights before it, its views and its draws.
    straight = pretrain(store.path, tmp_path / "straight", assignments=options)
    assert found.losses == pytest.approx({name: straight.steps[2][name] for name in found.losses}, rel=1e-6)
    code, output, _ = call_dagman("replay", out, 3)
    assert code == 0
    assert "Step 3 is finite when recomputed on the CPU in float32." in output
    code, _, errors = call_dagman("replay", out, 2)
    assert (code, errors.count("\n")) == (2, 1)
    assert "has not saved step 2. Steps that were saved because their loss was not finite: 3." in errors


def test_a_step_that_is_read_later_is_taken_back_with_the_one_after_it(store, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "choose_read_after", lambda *given: devices.Choice("read after", 1, "for the test"))
    options = [*tiny, "train.steps=5", "train.checkpoint_every=2", "train.monitor_every=9", "train.keep_checkpoints=9"]
    told = []
    with monkeypatch.context() as patch:
        _break_at(patch, {2})
        out = tmp_path / "run"
        run = pretrain(store.path, out, assignments=options, on_event=lambda name, values: told.append((name, values)))
    # Step 4 had been taken when step 3 was read; it is taken again, from the weights of step 2.
    assert [values["step"] for name, values in told if name == "step"] == [1, 2, 4, 5]
    assert [row["step"] for row in run.steps] == [1, 2, 4, 5]
    for name in ("student", "teacher", "heads", "optimizer"):
        kept, before = (out / folder / f"{name}.safetensors" for folder in ("broken/step-000003", "checkpoints/step-000002"))
        assert kept.read_bytes() == before.read_bytes(), name
    monkeypatch.setattr(trainer, "list_broken", lambda folder: [3])
    straight = pretrain(store.path, tmp_path / "straight", assignments=options)
    for name in ("metrics.jsonl", "encoder/model.safetensors", "encoder-student/model.safetensors"):
        assert (straight.path / name).read_bytes() == (out / name).read_bytes(), name


def test_a_replay_names_what_is_not_finite_first(store, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("dagman.method.step.masked_l1", lambda prediction, *rest: prediction.mean() * torch.nan)
    with pytest.raises(RunError, match="is not finite at step 1, on scans "):
        pretrain(store.path, tmp_path / "run", assignments=[*tiny, *OPTIONS, "train.skips=0"])
    found = replay_step(tmp_path / "run", 1)
    assert not found.is_finite
    assert (found.weights, found.modules) == ([], [])
    assert "reconstruction.linear.weight" in found.gradients


def test_a_run_ends_after_the_set_number_of_skips(store, tiny, tmp_path, monkeypatch):
    _break_at(monkeypatch, {1, 2, 3})
    options = [*tiny, *OPTIONS, "train.steps=6", "train.skips=2"]
    with pytest.raises(RunError, match=r"not finite at step 4, on scans .*; 2 such steps were skipped before"):
        pretrain(store.path, tmp_path / "run", assignments=options)
    run = Run(tmp_path / "run")
    assert [row["key"] for row in run.warnings if row["key"].startswith("skipped")] == ["skipped-2", "skipped-3"]
    # Started again, it knows what it skips.
    monkeypatch.undo()
    assert [row["step"] for row in pretrain(store.path, run.path).steps] == [1, 5, 6]


def _copy_with_damage(store, folder: Path, count: int) -> list[str]:
    shutil.copytree(store.path, folder)
    broken = [row.id for row in store.rows if min(row.shape) >= 16][:count]
    for scan in broken:
        path = locate_scan(folder, scan)
        path.write_bytes(path.read_bytes()[:100])
    return broken


def test_a_scan_that_cannot_be_read_is_listed_replaced_and_counted(store, tiny, tmp_path):
    (lost,) = _copy_with_damage(store, tmp_path / "store", 1)
    run = pretrain(tmp_path / "store", tmp_path / "run", assignments=[*tiny, *OPTIONS])
    assert run.last_step == 4
    assert {row["scan"] for row in read_rows(run.path / "unreadable.jsonl")} == {lost}
    (text,) = [row["text"] for row in run.warnings if row["key"] == f"unreadable-{lost}"]
    assert "A scan cannot be read, and others are used instead (1 of 3 so far): " in text
    again = pretrain(tmp_path / "store", tmp_path / "again", assignments=[*tiny, *OPTIONS])
    assert (again.path / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()


def test_more_unreadable_scans_than_are_allowed_end_the_run_in_one_line(store, tiny, tmp_path):
    _copy_with_damage(store, tmp_path / "store", 2)
    with pytest.raises(RunError, match=r"2 of 3 scans cannot be read, more than train\.unreadable = 0\.1 allows"):
        pretrain(tmp_path / "store", tmp_path / "run", assignments=[*tiny, *OPTIONS])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_cluster_that_takes_the_job_away_gets_a_checkpoint_and_the_code_to_start_again(
    whole, store, tmp_path, monkeypatch, call_dagman, number, code
):
    out = shutil.copytree(whole, tmp_path / "run")
    for step in (2, 3, 4):
        shutil.rmtree(out / "checkpoints" / f"step-{step:06d}")
    advance = Learner.advance

    def ask(self, pairs, step, *rest):
        if step == 2:
            os.kill(os.getpid(), number)
        return advance(self, pairs, step, *rest)

    monkeypatch.setattr(Learner, "advance", ask)
    # A long step would be abandoned, and on a loaded machine any step may be long.
    monkeypatch.setattr("dagman.training.trainer.LONG_STEP", math.inf)
    assert call_dagman("pretrain", store.path, "--out", out)[0] == code
    assert list_checkpoints(out) == [1, 2, 3]
    monkeypatch.undo()
    pretrain(store.path, out)
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_what_a_job_beside_the_training_raised_is_raised_to_who_looks():
    background = Background()
    assert background.has_ended() is False

    def fail() -> None:
        raise OSError("full")

    background.start(fail)
    with pytest.raises(OSError, match="full"):
        background.finish()
    assert background.finish() is False
