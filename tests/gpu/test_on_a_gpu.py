"""Proves on a CUDA device what the other tests prove on the CPU: the same losses, features and maps, and training that learns.

Skipped where there is none. `pytest tests/gpu` takes a minute on an H100.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dagman.encoder.encoder import Encoder
from dagman.encoder.loading import load_encoder
from dagman.method import Targets, ViewPair
from dagman.settings import load_settings, resolve_settings
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.tables.items import Item
from dagman.tables.structures import Structure
from dagman.tasks.finetuning import FinetuneSettings, finetune
from dagman.tasks.inputs.item_crops import ItemCrop
from dagman.tasks.segment.cases import Case
from dagman.tasks.segment.model import adapt_encoder, start_model
from dagman.tasks.segment.training import Fitting, fit_model
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients
from dagman.training.learner import Learner
from dagman.training.pretraining import pretrain
from dagman.training.run import Run

DEVICE = "cuda"
SIDE = 64
STEPS = 6
RUN = ("view.spacing=4", f"train.steps={STEPS}", "train.monitor_views=2", "train.monitor_every=3", "train.checkpoint_every=3")

pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Full float32 in convolutions, as on the CPU: TF32, which CUDA takes by itself, has 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _make_body(seed: int, side: int = 72) -> tuple[np.ndarray, np.ndarray]:
    """int16 HU X Y Z of a body with two lungs and a ball of 300 HU, and the ball."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.85) ** 2 < 1, 40.0, -1000.0)
    for middle in (-0.4, 0.4):
        hu[((x - middle) / 0.3) ** 2 + (y / 0.5) ** 2 + (z / 0.8) ** 2 < 1] = -850
    a, b, c = random.uniform(-0.1, 0.1, 3)
    ball = (x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 < 0.3**2
    hu[ball] = 300
    return np.rint(hu + random.normal(0, 15, hu.shape)).astype(np.int16), ball


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(3):
        image = nibabel.Nifti1Image(_make_body(seed)[0], np.diag([4.0, 4.0, 4.0, 1.0]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / f"body{seed}.nii")
    summary = prepare_store(folder, folder.parent / "store", Preparation(spacing=4.0), workers=1)
    return Store(summary.path)


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tiny` run of six steps in bf16 on the GPU."""
    out = tmp_path_factory.mktemp("run") / "run"
    pretrain(store.path, out, assignments=[*RUN, f"train.device={DEVICE}", "train.precision=bf16", "train.keep_checkpoints=9"])
    return out


@pytest.fixture(scope="module")
def both(run: Path) -> dict[str, Encoder]:
    """The run's encoder, on the GPU and on the CPU."""
    return {name: load_encoder(run, device=name, precision="fp32") for name in (DEVICE, "cpu")}


def _draw_pair(branches: int, pairs: int = 2) -> ViewPair:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=random)

    views = draw(pairs, 2, 1, SIDE, SIDE, SIDE)
    return ViewPair(views=views, masking=draw(pairs, 2, 64, 8), noise=draw(pairs, 2, 64), drop_path=draw(branches, pairs, 2))


def test_a_step_in_fp32_gives_the_losses_and_gradients_of_the_cpu():
    settings = resolve_settings(load_settings("tiny", None, assignments=["teacher.granularity=unit"])[0])[0]
    method = assembly.compose_method(settings)
    losses, gradients = {}, {}
    for name in ("cpu", DEVICE):
        student, teacher = assembly.build_networks(settings)
        student.to(name), teacher.to(name)
        targets = Targets(
            assembly.compose_rules(settings), int(settings.projector.prototypes), assembly.name_projectors(settings), name
        )
        drawn = _draw_pair(student.encoder.branches)
        pair = ViewPair(**{key: getattr(drawn, key).to(name) for key in ("views", "masking", "noise", "drop_path")})
        losses[name] = accumulate_gradients(student, teacher, [pair], method, targets, 0.05).parts
        gradients[name] = torch.cat([p.grad.flatten().cpu() for p in student.parameters() if p.grad is not None])
    for key, value in losses["cpu"].items():
        assert losses[DEVICE][key].item() == pytest.approx(value.item(), rel=1e-4), key
    error = (gradients[DEVICE] - gradients["cpu"]).norm() / gradients["cpu"].norm()
    assert error < 1e-3


def test_a_run_in_bf16_is_whole_and_its_losses_are_finite(run):
    found = Run(run)
    assert [row["step"] for row in found.steps] == list(range(1, STEPS + 1))
    assert all(np.isfinite(row["total"]) for row in found.steps)
    assert [row["step"] for row in found.monitors] == [0, 3, 6]
    assert found.timings[-1]["memory_gib"] > 0
    assert any("cuda" in line for line in found.choices) or DEVICE == "cpu"


def test_a_killed_run_goes_on_to_the_same_weights(run, store, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    shutil.rmtree(out / "checkpoints" / "step-000006")
    pretrain(store.path, out, resume=True)
    whole, resumed = (load_file(folder / "encoder" / "model.safetensors") for folder in (run, out))
    # A GPU adds in an order of its own: equal to the rounding of bfloat16 gradients, not bit for bit.
    worst = max(float(np.abs(whole[name] - resumed[name]).max()) for name in whole)
    print(f"\nlargest difference of a weight after a resume: {worst:g}")
    assert worst < 1e-5
    rows = [json.loads(line)["total"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == pytest.approx([row["total"] for row in Run(run).steps], rel=1e-3)


def test_losses_read_a_step_later_are_those_read_at_once(run, store, tmp_path):
    options = [*RUN, f"train.device={DEVICE}", "train.precision=bf16", "train.read_after=1"]
    later = pretrain(store.path, tmp_path / "run", assignments=options)
    assert [row["total"] for row in later.steps] == pytest.approx([row["total"] for row in Run(run).steps], rel=1e-3)


@pytest.mark.parametrize("compiled", ["off", "on", "graphs"])
def test_a_step_that_is_read_later_waits_for_nothing_and_a_compiled_one_gives_its_losses(compiled):
    settings = resolve_settings(load_settings("tiny", None, assignments=["train.steps=100", f"view.side={SIDE}"])[0])[0]
    told = {}
    for way in ("off", compiled):
        learner = Learner(settings, device=DEVICE, precision="fp32", compiled=way, read_after=1)
        drawn = _draw_pair(learner.student.encoder.branches)
        pair = ViewPair(**{key: getattr(drawn, key).to(DEVICE) for key in ("views", "masking", "noise", "drop_path")})
        told[way] = learner.read(learner.advance([pair], 50))
        for _ in range(2):
            learner.read(learner.advance([pair], 50))
        torch.cuda.set_sync_debug_mode("error")
        try:
            learner.advance([pair], 50)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert told[compiled] == pytest.approx(told["off"], rel=1e-3)


def test_loader_processes_change_nothing(run, store, tmp_path):
    out = tmp_path / "run"
    options = [*RUN, f"train.device={DEVICE}", "train.precision=bf16", "train.workers=0"]
    alone = pretrain(store.path, out, assignments=options)
    assert [row["total"] for row in alone.steps] == pytest.approx([row["total"] for row in Run(run).steps], rel=1e-3)


def test_features_and_attention_are_those_of_the_cpu(both, store):
    scan = store.read(store.rows[0].id)
    ours, theirs = (both[name].embed(scan).values for name in (DEVICE, "cpu"))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    view = torch.from_numpy(_make_body(7, SIDE)[0])[None, None]
    ours, theirs = (both[name].attend(view).cpu() for name in (DEVICE, "cpu"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_fine_tuning_loses_what_it_does_on_the_cpu(both):
    crops, labels = [], np.arange(16) % 2
    for number, label in enumerate(labels):
        random = np.random.default_rng(number)
        inside = np.zeros((32, 32, 32), dtype=bool)
        inside[10:22, 8:24, 11:19] = True
        streaks = np.where(np.arange(32) % 4 < 2, 150, -150)[:, None, None] if label else 0.0
        noise = random.normal(0, 60, inside.shape)
        voxels = np.where(inside, 60 + 20 * label + streaks, -700) + noise
        crops.append(ItemCrop(voxels=voxels.astype(np.int16), inside=inside, modality="CT", spacing=1.0))
    losses = {}
    for name in ("cpu", DEVICE):
        tuned = finetune(
            both[name],
            crops,
            labels,
            loss=torch.nn.functional.cross_entropy,
            outputs=2,
            train=np.arange(12),
            val=np.arange(12, 16),
            settings=FinetuneSettings(epochs=2),
        )
        losses[name] = [row["train"] for row in tuned.history[1:]] + [row["val"] for row in tuned.history]
    assert losses[DEVICE] == pytest.approx(losses["cpu"], rel=1e-2)


def test_segmentation_learns_a_ball_and_labels_a_scan(both, store):
    cases = []
    for seed in range(3):
        voxels, ball = _make_body(seed)
        item = Item(index=seed, name=f"case {seed}", scan="x", patient=f"p{seed}")
        cases.append(
            Case(
                item=item,
                voxels=voxels,
                labels=ball.astype(np.uint8),
                places=(np.argwhere(ball),),
                modality="CT",
                content_hash=f"{seed}",
                labels_hash=f"{seed}",
            )
        )
    ball = (Structure(name="ball", values=(1,)),)
    model = start_model(adapt_encoder(both[DEVICE], side=SIDE, spacing=4.0), ball, seed=1)
    told: list[float] = []
    fit_model(model, cases[:2], cases[2:], Fitting(steps=40, rate=3e-3, batch=2), lambda step, loss: told.append(loss))
    assert min(told[-3:]) < 0.5 * told[0]
    chances = model.measure_class_weights(store.read(store.rows[0].id))
    assert chances.shape == (2, *store.rows[0].shape)
    assert bool(torch.isfinite(chances).all())
