"""A run that goes on from another run, an encoder or MONAI's weights takes what fits, says what is fresh, and resumes exactly."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dagman.encoder.folder import read_config
from dagman.errors import EncoderError, RunError
from dagman.export.contents import describe_path
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.testing import make_body, write_nifti
from dagman.training.pretraining import pretrain
from dagman.training.start.record import write_start
from dagman.training.start.source import resolve_source

SHORT = ("train.steps=2", "train.monitor_every=2", "train.checkpoint_every=1", "train.keep_checkpoints=9")
MACHINE = ("train.precision=fp32", "train.device=cpu", "train.workers=0", "train.monitor_views=2")


@pytest.fixture(scope="module")
def first(store, tiny, tmp_path_factory):
    """A run of two steps on three bodies."""
    out = tmp_path_factory.mktemp("first") / "run"
    pretrain(store.path, out, assignments=[*tiny, *SHORT])
    return out


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Store:
    """Two other bodies, at 3 mm."""
    folder = tmp_path_factory.mktemp("other")
    for seed in (7, 8):
        write_nifti(folder / "scans" / f"{seed}.nii.gz", make_body((40, 36, 38), seed), 4.0)
    return Store(prepare_store(folder / "scans", folder / "store", Preparation(spacing=3.0), workers=1).path)


def _go_on(source, store, out, *assignments: str, **options) -> tuple[dict[str, tuple[str, str]], str]:
    """Train for two steps; what became of each part, and all that was printed."""
    printed = []
    pretrain(
        store.path,
        out,
        continue_from=str(source),
        assignments=[*SHORT, *MACHINE, *assignments],
        on_event=lambda name, values: printed.append(values.get("text", "")),
        **options,
    )
    parts = json.loads((out / "start.json").read_text())["parts"]
    return {part["name"]: (part["state"], part["reason"]) for part in parts}, "\n".join(printed)


def _read_weights(run, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    files = {name: load_file(folder / f"{name}.safetensors") for name in ("student", "teacher", "heads")}
    return {f"{name}.{key}": value for name, tensors in files.items() for key, value in tensors.items()}


def _read_temperatures(run, step: int) -> dict[str, float]:
    return json.loads((run / "checkpoints" / f"step-{step:06d}" / "state.json").read_text())["log_temperatures"]


@pytest.fixture(scope="module")
def second(first, other, tmp_path_factory):
    out = tmp_path_factory.mktemp("second") / "run"
    return out, *_go_on(first, other, out)


def test_a_run_hands_on_teacher_projectors_and_centres(first, second):
    out, parts, printed = second
    assert {state for state, _ in parts.values()} == {"taken"}
    before, after = _read_weights(first, 2), _read_weights(out, 0)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert _read_temperatures(first, 2) == _read_temperatures(out, 0)
    assert "the optimiser starts anew" in printed
    assert "previously pretrained on 3 scans (CT) of 3 patients at 4 mm, views of 32^3: dagman, 2 steps" in printed


def test_an_encoder_remembers_every_cohort_and_every_scan(first, second):
    before, after = read_config(first / "encoder"), read_config(second[0] / "encoder")
    assert [(one.scans, one.spacing, one.steps) for one in after.cohorts] == [(3, 4.0, 2), (2, 3.0, 2)]
    assert after.cohorts[:1] == before.cohorts
    assert set(before.scans_seen) < set(after.scans_seen)
    assert len(after.scans_seen) == 5
    assert len(describe_path(str(second[0] / "encoder")).made_from["pretrained_on"]) == 2


def test_another_size_than_that_of_the_source_is_refused(first, other, tmp_path):
    with pytest.raises(RunError, match=r"is of size tiny, but --size small was requested\. Omit --size"):
        pretrain(other.path, tmp_path / "run", size="small", continue_from=str(first), assignments=list(MACHINE))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("step", [0, 1])
def test_a_run_that_goes_on_and_is_killed_resumes_bit_for_bit(second, first, other, tmp_path, step):
    out = tmp_path / "run"
    shutil.copytree(second[0], out)
    for later in range(step + 1, 3):
        shutil.rmtree(out / "checkpoints" / f"step-{later:06d}")
    pretrain(other.path, out, continue_from=str(first), assignments=list(MACHINE))
    for name in ("metrics.jsonl", "monitors.jsonl", "encoder/model.safetensors", "encoder/config.json"):
        assert (out / name).read_bytes() == (second[0] / name).read_bytes()


def test_a_larger_view_and_another_method(first, other, tmp_path):
    parts, printed = _go_on(first, other, tmp_path / "run", "view.side=64", "train.steps=1", method="smit")
    assert parts["encoder"] == parts["reconstruction"] == ("taken", "")
    assert "64^3 voxels (192 mm)" in printed
    assert read_config(tmp_path / "run" / "encoder").view == 64


def test_other_prototypes_make_the_projectors_fresh_and_say_so(first, other, tmp_path):
    parts, _ = _go_on(first, other, tmp_path / "run", "projector.prototypes=8", "train.steps=1")
    fresh = {name for name, (state, _) in parts.items() if state == "fresh"}
    assert fresh == {"projectors.ampd", "projectors.aitd", "projectors.gitd", "centres"}
    assert "1 weight of another shape (projectors.ampd.last.weight)" in parts["projectors.ampd"][1]


def test_an_encoder_is_student_and_teacher_with_fresh_heads(first, other, tmp_path):
    out = tmp_path / "run"
    small = ("projector.hidden=16", "projector.bottleneck=8", "projector.prototypes=16", "train.steps=1")
    parts, printed = _go_on(first / "encoder", other, out, *small)
    assert "\nadopted: encoder (" in printed
    assert "\nrandomly initialised: projectors.ampd (the source has none)" in printed
    assert "\ncopied from the student: teacher (the source has none)" in printed
    assert "\nstarting from zero: centres (" in printed
    assert parts["encoder"][0] == parts["semantic_attention"][0] == "taken"
    assert parts["teacher"] == ("fresh", "the source has none")
    assert {parts[f"projectors.{name}"] for name in ("ampd", "aitd", "gitd")} == {("fresh", "the source has none")}
    held, weights = load_file(first / "encoder" / "model.safetensors"), _read_weights(out, 0)
    assert all(torch.equal(held[key], weights[f"{owner}.{key}"]) for key in held for owner in ("student", "teacher"))


def test_an_encoder_of_a_hub_is_taken_from_the_cache_of_this_machine(first, other, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra `hub`")
    monkeypatch.delenv("DAGMAN_ONLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    held = tmp_path / "models--someone--ct"
    (held / "refs").mkdir(parents=True)
    (held / "refs" / "main").write_text("a" * 40)
    shutil.copytree(first / "encoder", held / "snapshots" / ("a" * 40))
    source, folder = resolve_source("hub:someone/ct"), resolve_source(str(first / "encoder"))
    assert (source.kind, source.digest, source.config) == ("encoder", folder.digest, folder.config)
    written = write_start(tmp_path, source, [])
    assert (written.source, written.cohorts) == ("ct", read_config(first / "encoder").cohorts)
    with pytest.raises(EncoderError, match="hub:someone/other: is not in the cache of this machine"):
        _go_on("hub:someone/other", other, tmp_path / "run")


def test_weights_of_monai(other, tmp_path):
    nets = pytest.importorskip("monai.networks.nets.swin_unetr")
    swin = nets.SwinTransformer(1, 12, (4, 4, 4), (2, 2, 2), (2, 2, 2, 2), (1, 2, 4, 8), spatial_dims=3)
    path = tmp_path / "swin.safetensors"
    save_file({key: value.contiguous() for key, value in swin.state_dict().items()}, path)
    small = ("view.side=32", "projector.hidden=16", "projector.bottleneck=8", "projector.prototypes=16", "model.sa_heads=2")
    with pytest.raises(EncoderError, match="its preprocessing is not known"):
        _go_on(path, other, tmp_path / "run", *small, "train.steps=1")
    # As the refusal writes it.
    parts, _ = _go_on(f"monai:{path}:spacing=1.5:low=-500:high=500", other, tmp_path / "run", *small, "train.steps=1")
    assert parts["encoder"][0] == "taken"
    assert parts["semantic_attention"] == ("fresh", "the source has none")
    assert read_config(tmp_path / "run" / "encoder").cohorts[0].method == "monai"
    torch.save({"state_dict": {f"module.swinViT.{key}": value for key, value in swin.state_dict().items()}}, tmp_path / "swin.pt")
    parts, _ = _go_on(f"{tmp_path / 'swin.pt'}:spacing=3:low=-500:high=300", other, tmp_path / "torch", *small, "train.steps=1")
    assert parts["encoder"][0] == "taken"
    assert read_config(tmp_path / "torch" / "encoder").low == -500.0


def test_other_sizes_are_refused_by_name(first, other, tmp_path):
    with pytest.raises(RunError, match=r"model\.embed is 8 there and 16 here") as refused:
        _go_on(first, other, tmp_path / "run", "model.embed=16")
    assert "Remove these settings" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_continued_as_one_that_began_elsewhere(first, second, other, store):
    with pytest.raises(RunError, match="was started from randomly initialised weights, not from"):
        pretrain(store.path, first, continue_from="elsewhere")
    with pytest.raises(RunError, match="was started from run, not from"):
        pretrain(other.path, second[0], continue_from="elsewhere")
