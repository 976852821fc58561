"""Proves fine-tuning: what the head reads is what a probe reads, one seed is one result, memory changes nothing, and it learns."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dagman.encoder.embedding import pool_crops as pool_for_probes
from dagman.encoder.pooling import Pooling
from dagman.errors import SettingsError, TaskError
from dagman.evaluation.classification_metrics import measure_auc
from dagman.store.crops import Crop
from dagman.tasks import finetuning
from dagman.tasks.finetuning import (
    PRESETS,
    FinetuneSettings,
    LinearHead,
    anneal,
    choose_finetuning,
    finetune,
    hold_out,
    pool_crops,
    pool_maps,
)
from dagman.tasks.inputs.item_crops import ItemCrop
from dagman.tasks.layer_rates import scale_rates
from dagman.training.assembly import group_parameters

cross_entropy = torch.nn.functional.cross_entropy
QUICK = FinetuneSettings(epochs=1, rate=1e-3, least_steps=1)


def _make_crops(count: int, side: int = 32) -> tuple[list[ItemCrop], np.ndarray]:
    """Boxes in noise: of 60 HU, or of 160 HU with a streaked inside."""
    crops, labels = [], np.arange(count) % 2
    for number, label in enumerate(labels):
        random = np.random.default_rng(number)
        voxels = random.normal(-700, 60, (side, side, side))
        inside = np.zeros(voxels.shape, dtype=bool)
        inside[10:22, 8:24, 11:19] = True
        streaks = np.where(np.arange(side) % 4 < 2, 150, -150)[:, None, None] if label else 0.0
        voxels = np.where(inside, 60 + 20 * label + streaks + random.normal(0, 60, voxels.shape), voxels)
        crops.append(ItemCrop(voxels=voxels.astype(np.int16), inside=inside, modality="CT", spacing=1.0))
    return crops, labels


@pytest.fixture(scope="module")
def crops() -> tuple[list[ItemCrop], np.ndarray]:
    return _make_crops(16)


def test_the_head_reads_what_a_linear_probe_reads(small_encoder, crops):
    ours = pool_crops(small_encoder, crops[0][:3])
    plain = [Crop(voxels=c.voxels.astype(np.float32), inside=c.inside, modality="CT") for c in crops[0][:3]]
    np.testing.assert_allclose(ours, pool_for_probes(small_encoder, plain, Pooling()), atol=2e-3)


def test_pooling_a_batch_is_pooling_each_of_it():
    draws = torch.Generator().manual_seed(0)
    maps = [torch.randn(3, 4, 8 >> i, 8 >> i, 8 >> i, generator=draws) for i in range(2)]
    inside = torch.rand(3, 16, 16, 16, generator=draws) > 0.7
    together = pool_maps(maps, inside)
    apart = torch.cat([pool_maps([m[i : i + 1] for m in maps], inside[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, apart, atol=1e-6)


def test_pooling_has_a_finite_slope_where_one_cell_is_touched():
    maps = torch.ones(1, 2, 4, 4, 4, requires_grad=True)
    inside = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    inside[0, 0, 0, 0] = True
    pool_maps([maps], inside).sum().backward()
    assert torch.isfinite(maps.grad).all()


def test_one_seed_is_one_result_and_another_seed_another(small_encoder, crops):
    def run(seed: int) -> np.ndarray:
        train = np.arange(8)
        tuned = finetune(
            small_encoder, crops[0], crops[1], loss=cross_entropy, outputs=2, train=train, val=train[:0], settings=QUICK, seed=seed
        )
        return tuned.predict(crops[0][8:12])

    first = run(0)
    np.testing.assert_array_equal(first, run(0))
    assert np.abs(first - run(1)).max() > 0


def test_a_batch_in_pieces_gives_the_same_weights(small_encoder, crops, monkeypatch):
    def run() -> np.ndarray:
        train = np.arange(8)
        settings = FinetuneSettings(epochs=1, rate=1e-3, batch=8, least_steps=1)
        tuned = finetune(
            small_encoder, crops[0], crops[1], loss=cross_entropy, outputs=2, train=train, val=train[:0], settings=settings
        )
        return tuned.predict(crops[0][:2])

    whole = run()
    monkeypatch.setattr(finetuning, "_PIECE", 32**3 * 8)
    np.testing.assert_allclose(whole, run(), atol=1e-5)


def test_the_encoder_given_stays_as_it_was(small_encoder, crops):
    before = small_encoder.network.state_dict()["encoder.patch_projection.weight"].clone()
    train = np.arange(8)
    tuned = finetune(small_encoder, crops[0], crops[1], loss=cross_entropy, outputs=2, train=train, val=train[:0], settings=QUICK)
    assert torch.equal(small_encoder.network.state_dict()["encoder.patch_projection.weight"], before)
    assert not torch.equal(tuned.encoder.network.state_dict()["encoder.patch_projection.weight"], before)
    assert not any(p.requires_grad for p in tuned.encoder.network.parameters())


def test_it_learns_what_is_there(small_encoder):
    crops, labels = _make_crops(32)
    settings = FinetuneSettings(epochs=6, rate=2e-3, layer_decay=1.0, patience=6)
    tuned = finetune(
        small_encoder,
        crops,
        labels,
        loss=cross_entropy,
        outputs=2,
        train=np.arange(16),
        val=np.arange(16, 20),
        settings=settings,
    )
    outputs = tuned.predict(crops[20:])
    assert measure_auc(labels[20:], outputs[:, 1] - outputs[:, 0]) > 0.9
    losses = [row["train"] for row in tuned.history[1:]]
    assert losses[-1] < losses[0]
    assert tuned.best == int(np.argmin([row["val"] for row in tuned.history]))


def test_a_start_that_training_only_spoils_is_kept(small_encoder, crops):
    train, val = np.arange(8), np.arange(8, 12)
    seen: list[float] = []

    def worsen(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # Validation grows from look to look, whatever the weights are.
        seen.append(float(len(seen)))
        return outputs.sum() * 0 + seen[-1]

    tuned = finetune(small_encoder, crops[0], crops[1], loss=worsen, outputs=2, train=train, val=val, settings=QUICK)
    assert tuned.best == 0
    before = small_encoder.network.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in tuned.encoder.network.state_dict().items())


def test_patience_ends_it_in_the_later_half_alone(small_encoder, crops):
    losses = iter(range(10**6))

    def worsen(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.sum() * 0 + float(next(losses))

    settings = FinetuneSettings(epochs=9, patience=2)
    train, val = np.arange(4), np.arange(4, 6)
    tuned = finetune(small_encoder, crops[0], crops[1], loss=worsen, outputs=2, train=train, val=val, settings=settings)
    # While the rate is high a loss may rise for long, and fall lower afterwards.
    assert len(tuned.history) == 1 + 5


def test_a_head_to_start_from_is_started_from(small_encoder, crops):
    width = pool_crops(small_encoder, crops[0][:1]).shape[1]
    head = LinearHead(
        mean=np.zeros(width, np.float32),
        scale=np.ones(width, np.float32),
        weights=np.zeros((2, width), np.float32),
        bias=np.array([3.0, -3.0], np.float32),
    )
    train = np.arange(4)
    tuned = finetune(
        small_encoder,
        crops[0],
        crops[1],
        loss=cross_entropy,
        outputs=2,
        train=train,
        val=train[:0],
        start=head,
        settings=FinetuneSettings(epochs=1, rate=1e-9),
    )
    np.testing.assert_allclose(tuned.predict(crops[0][:2]), [[3, -3], [3, -3]], atol=1e-3)


def test_a_loss_that_is_not_finite_stops_it(small_encoder, crops):
    train = np.arange(4)
    with pytest.raises(TaskError, match="not finite in epoch 1"):
        finetune(small_encoder, crops[0], crops[1], loss=lambda o, t: o.sum() * math.nan, outputs=2, train=train, val=train[:0])


def test_the_rate_rises_then_falls_to_nothing():
    rates = [anneal(step, 100, 0.1) for step in range(100)]
    assert rates[9] == 1.0
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.01


def test_rates_fall_from_layer_to_layer_downwards(small_encoder):
    network, head = small_encoder.network.encoder, torch.nn.Linear(3, 2)
    groups = scale_rates(network, head, rate=1.0, decay=0.5, weight_decay=0.1)
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(network.named_parameters())
    assert rate_of[id(head.weight)] == rate_of[id(named["stages.3.merging.norm.weight"])] == 1.0
    assert rate_of[id(named["patch_projection.weight"])] == 0.5**8
    assert all(len(p.shape) > 1 or group["weight_decay"] == 0 for group in groups for p in group["params"])
    assert len(rate_of) == len(named) + 2


def test_weight_decay_spares_biases_norms_tokens_and_bias_tables_as_in_pretraining(small_encoder):
    network, head = small_encoder.network.encoder, torch.nn.Linear(3, 2)
    tuned = scale_rates(network, head, rate=1.0, decay=0.5, weight_decay=0.1)
    trained = group_parameters(network, 0.1)
    decays = [{id(p) for group in groups if group["weight_decay"] for p in group["params"]} for groups in (tuned, trained)]
    assert decays[0] == decays[1] | {id(head.weight)}
    tables = [p for name, p in network.named_parameters() if name.endswith("bias_table")]
    assert tables
    assert all(p.ndim == 2 and id(p) not in decays[0] for p in tables)


def test_an_inner_split_holds_out_whole_patients_of_every_class():
    patients = np.repeat(np.arange(20), 2)
    labels = patients % 2
    train = np.arange(4, 40)
    fit, stop = hold_out(patients, labels, train)
    assert sorted([*fit, *stop]) == train.tolist()
    assert not set(patients[fit]) & set(patients[stop])
    assert set(labels[stop]) == set(labels[fit]) == {0, 1}


def test_one_patient_of_a_class_leaves_nothing_to_hold_out():
    fit, stop = hold_out(np.array(["a", "b", "c"]), np.array([0, 0, 1]), np.arange(3))
    assert (fit.tolist(), stop.tolist()) == ([0, 1, 2], [])


def test_every_model_is_fine_tuned_at_one_rate_unless_a_decay_is_asked_for():
    assert choose_finetuning("short").layer_decay == choose_finetuning("paper").layer_decay == 1.0
    assert choose_finetuning("paper", epochs=5) == replace(PRESETS["paper"], epochs=5)
    assert (PRESETS["paper"].epochs, PRESETS["paper"].rate) == (1000, 2e-4)
    with pytest.raises(SettingsError, match=r"'long' is not a preset\. Choose one of short, paper"):
        choose_finetuning("long")
    with pytest.raises(SettingsError, match=r"--layer-decay is 1\.5"):
        choose_finetuning("short", layer_decay=1.5)
