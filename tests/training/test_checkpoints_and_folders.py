"""Checkpoints are whole or refused in one line; the run folder and the encoder folder give back what was written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dagman.encoder.folder import read_config, read_weights, write_encoder
from dagman.encoder.loading import load_encoder
from dagman.errors import EncoderError, RunError, SettingsError
from dagman.records.hashes import hash_file
from dagman.settings.momentum import list_momenta, measure_memory
from dagman.training.checkpoints import list_checkpoints, read_state
from dagman.training.learner import Learner
from dagman.training.pretraining import pretrain
from dagman.training.run import Run


@pytest.fixture(scope="module")
def finished(store, tiny, tmp_path_factory) -> Path:
    """A run of three steps, checkpoints after each, two kept."""
    out = tmp_path_factory.mktemp("finished") / "run"
    pretrain(store.path, out, assignments=[*tiny, "train.steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=2"])
    return out


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def _fill_learner(run: Path) -> Learner:
    """A fresh learner that has taken over the newest checkpoint."""
    learner = Learner(Run(run).settings, device="cpu", precision="fp32")
    learner.load(run)
    return learner


def test_only_the_newest_checkpoints_are_kept_in_files_of_the_stated_names(finished):
    assert list_checkpoints(finished) == [2, 3]
    names = ["heads.safetensors", "optimizer.safetensors", "state.json", "student.safetensors", "teacher.safetensors"]
    for folder in (finished / "checkpoints").iterdir():
        assert sorted(path.name for path in folder.iterdir()) == names


def test_nothing_of_a_run_is_pickled(finished):
    suffixes = {path.suffix for path in finished.rglob("*") if path.is_file() and path.parent.name != "tensorboard"}
    assert suffixes == {"", ".toml", ".json", ".jsonl", ".safetensors"}
    assert [path.name for path in finished.rglob("*") if path.is_file() and not path.suffix] == [".lock"]
    for path in finished.rglob("*.safetensors"):
        header = path.read_bytes()
        json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


def test_a_checkpoint_gives_back_every_weight_moment_and_target(finished):
    learner = _fill_learner(finished)
    folder = finished / "checkpoints" / "step-000003"
    files = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    for role, network in (("student", learner.student), ("teacher", learner.teacher)):
        for name, value in network.state_dict().items():
            stored = files[role][name] if name in files[role] else files["heads"][f"{role}.{name}"]
            assert torch.equal(value, stored)
    assert not any("reconstruction" in name for name in files["heads"] if name.startswith("teacher."))
    names = dict(learner.student.named_parameters())
    assert {key.split(":")[1] for key in files["optimizer"]} == set(names)
    for key, value in files["optimizer"].items():
        kind, name = key.split(":")
        assert torch.equal(learner.optimizer.state[names[name]][kind], value)
    for name, value in learner.targets.state()[0].items():
        assert torch.equal(value, files["heads"][f"targets.{name}"])
    assert len(files["heads"]["targets.queue.gitd"]) == 12


@pytest.mark.parametrize("name", ["student", "teacher", "heads", "optimizer"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "other"])
def test_a_damaged_checkpoint_is_one_line_that_names_its_folder(copied, name, damage):
    path = copied / "checkpoints" / "step-000003" / f"{name}.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "missing":
        path.unlink()
    else:
        shutil.copy(path.parent / ("heads.safetensors" if name != "heads" else "student.safetensors"), path)
    with pytest.raises(RunError) as caught:
        _fill_learner(copied)
    text = str(caught.value)
    assert text.startswith(f"{path.parent}: is damaged: ")
    assert text.endswith("Remove this checkpoint, and resume from the previous one.")
    assert "\n" not in text


def test_a_checkpoint_of_the_first_format_is_read_and_its_damage_is_found(copied):
    folder = copied / "checkpoints" / "step-000003"
    state = json.loads((folder / "state.json").read_text())
    assert all(checksum.startswith("crc32:") for checksum in state["checksums"].values())
    del state["checksum"]
    before = {name: hash_file(folder / f"{name}.safetensors") for name in state["checksums"]}
    (folder / "state.json").write_text(json.dumps(state | {"format": 1, "checksums": before}))
    _fill_learner(copied)
    path = folder / "heads.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RunError, match=r"the checksum of heads\.safetensors differs"):
        _fill_learner(copied)


@pytest.mark.parametrize(
    ("content", "text"), [("{", "is damaged"), ("[]", "is damaged"), ("{}", "is damaged"), ('{"format": 9}', "checkpoint format 9")]
)
def test_a_damaged_state_is_one_line_that_names_its_folder(copied, content, text):
    folder = copied / "checkpoints" / "step-000003"
    (folder / "state.json").write_text(content)
    with pytest.raises(RunError, match=text) as caught:
        read_state(copied)
    assert str(caught.value).startswith(f"{folder}: ")


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_that_was_removed(copied, finished, store):
    shutil.rmtree(copied / "checkpoints" / "step-000003")
    run = pretrain(store.path, copied, resume=True)
    assert run.last_step == 3
    assert (copied / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert (copied / "monitors.jsonl").read_bytes() == (finished / "monitors.jsonl").read_bytes()


def test_folders_that_are_no_checkpoints_are_not_counted(copied):
    (copied / "checkpoints" / "step-000009").mkdir()
    (copied / "checkpoints" / "step-old").mkdir()
    (copied / "checkpoints" / "step-old" / "state.json").write_text("{}")
    (copied / "checkpoints" / "damaged-step-000004").mkdir()
    (copied / "checkpoints" / "damaged-step-000004" / "state.json").write_text("{}")
    assert list_checkpoints(copied) == [2, 3]
    with pytest.raises(RunError, match="holds no checkpoint to resume from"):
        read_state(copied / "encoder")


def test_the_run_folder_is_read_as_it_was_written(finished, make_settings):
    run = Run(finished)
    options = ("train.steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=2", "view.modality=ct")
    assert run.settings == make_settings(*options)
    assert (run.last_step, [row["step"] for row in run.steps], [row["step"] for row in run.monitors]) == (3, [1, 2, 3], [0, 2, 3])
    assert set(run.steps[0]) >= {"total", "amip", "ampd", "aitd", "gitd", "lr", "momentum", "tau_ampd", "grad_norm"}
    assert set(run.timings[0]) == {"step", "seconds", "views_per_s", "voxels_per_s", "waiting_share", "memory_gib"}
    parts = {"attention", "reconstruction", "projectors", "features", "diversity", "student", "masks"}
    assert set(run.monitors[0]) == {"step", *parts}
    assert set(run.monitors[0]["student"]) == {"attention", "features", "diversity"}
    assert set(run.monitors[0]["reconstruction"]) >= {"student", "teacher", "ratio", "teacher_ratio", "best"}
    assert run.command["command"] == "pretrain"
    assert any(line.startswith("masking: attention-high, 5 of 8 units masked") for line in run.choices)
    assert any(line.startswith("excluded: 1 scan smaller than 16 voxels") for line in run.choices)
    assert list((finished / "tensorboard").iterdir())
    assert "step=3" in repr(run)


def test_the_gallery_holds_the_validation_views(finished, store):
    run = Run(finished)
    assert run.gallery_steps == [0, 2, 3]
    gallery = run.gallery(2)
    assert set(gallery) == {"view", "hidden", "attention", "attention_heads", "reconstruction", "spacing"}
    assert gallery["view"].shape == gallery["reconstruction"].shape == (2, 1, 32, 32, 32)
    assert gallery["hidden"].sum(axis=1).tolist() == [5, 5]
    assert gallery["attention"].shape == (2, 8)
    assert gallery["attention_heads"].shape == (2, 2, 8)
    np.testing.assert_allclose(gallery["attention_heads"].mean(axis=1), gallery["attention"], atol=1e-6)
    assert gallery["spacing"].tolist() == [4.0]
    rows = {row.id: row.patient for row in store.rows}
    assert all(rows[one["scan"]] == one["patient"] for one in run.gallery_sources(2))
    assert (len(run.gallery_sources(2)), run.gallery_sources(1)) == (2, [])
    with pytest.raises(RunError, match=r"has no saved views of step 1\. Steps with views: 0, 2, 3\."):
        run.gallery(1)


def test_a_folder_that_is_no_run_and_settings_that_are_damaged_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"is not a run: settings\.toml is missing"):
        Run(tmp_path)
    (tmp_path / "settings.toml").write_text("steps = = 3")
    with pytest.raises(RunError, match="is damaged"):
        _ = Run(tmp_path).settings
    (tmp_path / "settings.toml").write_text("[train]\nstepz = 3")
    with pytest.raises(SettingsError, match=r"train\.stepz: unknown key \(line 2\)"):
        _ = Run(tmp_path).settings


def test_the_encoder_is_the_teachers_and_says_what_it_was_trained_with(finished, store):
    learner = _fill_learner(finished)
    weights = read_weights(Run(finished).encoder_folder)
    expected = {k: v for k, v in learner.teacher.state_dict().items() if k.startswith(("encoder.", "semantic_attention."))}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert not all(torch.equal(weights[name], learner.student.state_dict()[name]) for name in weights)
    config = read_config(Run(finished).encoder_folder)
    memory = measure_memory(list_momenta(3, *_read_momenta(finished)))
    assert (config.weights, config.first_weights, config.average_age) == ("teacher", memory.first_weights, memory.age)
    assert (config.step, config.size, config.method, config.spacing, config.view) == (3, "tiny", "dagman", 4.0, 32)
    assert (config.low, config.high, config.orientation, config.modalities) == (-1000.0, 500.0, "RAS", ("CT",))
    seen = {row.content_hash for row in store.rows if min(row.shape) >= 16}
    assert set(config.scans_seen) == seen
    assert load_encoder(finished).config == config


def _read_momenta(folder):
    teacher = Run(folder).settings.teacher
    return float(teacher.momentum), float(teacher.momentum_end)


def test_the_student_is_kept_beside_the_teacher_and_either_is_loaded_by_name(finished):
    learner = _fill_learner(finished)
    for weights, network in (
        ("student", learner.student),
        ("teacher", learner.teacher),
        ("auto", learner.teacher),
    ):
        encoder = load_encoder(finished, device="cpu", weights=weights)
        assert encoder.config.weights == ("student" if weights == "student" else "teacher")
        for name, value in encoder.network.state_dict().items():
            assert torch.equal(value, network.state_dict()[name]), name
    assert read_config(finished / "encoder-student").first_weights == 0
    with pytest.raises(EncoderError, match="holds the weights of the teacher, not of the student"):
        load_encoder(finished / "encoder", device="cpu", weights="student")
    with pytest.raises(EncoderError, match="'best' is not a choice of weights"):
        load_encoder(finished, device="cpu", weights="best")


def test_a_method_without_a_teacher_keeps_its_student_as_the_encoder(store, tiny, tmp_path):
    run = pretrain(store.path, tmp_path / "run", method="simmim", assignments=[*tiny, "train.steps=1"])
    assert not (run.path / "encoder-student").exists()
    assert load_encoder(run.path, device="cpu", weights="student").config.weights == "student"
    with pytest.raises(EncoderError, match="holds the weights of the student, not of the teacher"):
        load_encoder(run.path, device="cpu", weights="teacher")


def test_without_a_teacher_the_encoder_is_the_students(store, tiny, tmp_path):
    out = tmp_path / "run"
    pretrain(store.path, out, method="simmim", assignments=[*tiny, "train.steps=2", "train.monitor_every=1"])
    weights, student = read_weights(out / "encoder"), _fill_learner(out).student.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in weights.items())
    assert not any(name.startswith("semantic_attention.") for name in weights)
    assert read_config(out / "encoder").semantic is None
    (row, *_) = Run(out).monitors
    assert set(row) == {"step", "reconstruction", "features", "diversity", "masks"}


def test_an_encoder_folder_is_read_as_it_was_written(finished, tmp_path):
    config = dataclasses.replace(read_config(finished / "encoder"), step=9, modalities=("CT", "MR"), mask_fill="token")
    state = {"encoder.a": torch.rand(3, dtype=torch.float64), "semantic_attention.b": torch.rand(2), "projectors.c": torch.rand(2)}
    write_encoder(tmp_path / "encoder", config, state)
    assert read_config(tmp_path / "encoder") == config
    weights = read_weights(tmp_path / "encoder")
    assert set(weights) == {"encoder.a", "semantic_attention.b"}
    torch.testing.assert_close(weights["encoder.a"], state["encoder.a"].float())
    assert weights["encoder.a"].dtype == torch.float32


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "is not an encoder"),
        ("{", "is damaged"),
        ("{}", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 9, "dagman": "9"}', "format 9"),
    ],
)
def test_an_encoder_config_that_cannot_be_read_is_one_line(copied, content, text):
    path = copied / "encoder" / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(EncoderError, match=text) as caught:
        read_config(copied / "encoder")
    assert str(copied) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not tensors at all"])
def test_encoder_weights_that_cannot_be_read_are_one_line(copied, content):
    path = copied / "encoder" / "model.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(EncoderError, match="missing" if content is None else "damaged") as caught:
        read_weights(copied / "encoder")
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run_names_the_scans_and_leaves_its_checkpoint(copied, store, monkeypatch):
    shutil.rmtree(copied / "checkpoints" / "step-000003")
    monkeypatch.setattr("dagman.method.step.masked_l1", lambda *arguments: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(RunError, match="is not finite at step 3, on scans ") as caught:
        pretrain(store.path, copied, resume=True, assignments=["train.skips=0"])
    assert any(row.id in str(caught.value) for row in store.rows)
    assert list_checkpoints(copied) == [2]
    assert Run(copied).last_step == 2


def test_the_reconstruction_starts_at_the_mean_intensity_of_the_first_views(store, tiny, tmp_path, make_dataset):
    out = tmp_path / "run"
    told = []
    options = [*tiny, "optim.lr=1e-12", "optim.min_lr=0"]
    pretrain(store.path, out, assignments=options, on_event=lambda name, values: told.append(values.get("text", "")))
    dataset = make_dataset(Run(out).settings)
    views = torch.cat([(dataset[step]["u"].float() + 1000) / 1500 for step in range(6)]).clamp(0, 1)
    bias = _fill_learner(out).student.reconstruction.linear.bias
    torch.testing.assert_close(bias, views[..., ::4, ::4, ::4].mean().expand_as(bias), rtol=1e-4, atol=0)
    assert [line.split(": ")[0] for line in told].count("pace") == 1
