"""Proves the parts of a segmentation's training: network, loss, crops by address, layer-wise rates, what is learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dagman.encoder.encoder import Encoder
from dagman.tables.items import Item
from dagman.tables.structures import Structure
from dagman.tasks.models import load_network, parse_model
from dagman.tasks.segment.cases import Case
from dagman.tasks.segment.model import SegmentationModel, adapt_encoder, start_model
from dagman.tasks.segment.training import (
    Fitting,
    cut_padded,
    draw_crop,
    fit_model,
    measure_loss,
    measure_shares,
    place_crop,
    plan_validations,
    take_batch,
)

BALL = (Structure(name="ball", values=(3,)),)


def make_case(make_ball, seed: int) -> Case:
    hu, ball = make_ball(seed)
    return Case(
        item=Item(index=seed, name=f"case {seed}", scan="x", patient=f"p{seed}"),
        voxels=hu,
        labels=ball,
        places=(np.argwhere(ball),),
        modality="CT",
        content_hash=f"{seed}",
        labels_hash=f"{seed}",
    )


@pytest.fixture
def model(small_encoder: Encoder) -> SegmentationModel:
    return start_model(adapt_encoder(small_encoder, side=32, spacing=5.0), BALL, seed=1)


def test_every_weight_learns_and_logits_have_the_views_grid(model):
    logits = model.network(torch.rand(2, 1, 32, 64, 32))
    assert logits.shape == (2, 2, 32, 64, 32)
    measure_loss(logits, torch.ones(2, 32, 64, 32, dtype=torch.long)).backward()
    unused = [name for name, value in model.network.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert unused == []


def test_a_view_that_is_no_multiple_of_32_is_refused(model):
    with pytest.raises(ValueError, match="multiples of 32"):
        model.network(torch.rand(1, 1, 32, 40, 32))


def test_the_encoder_it_started_from_is_left_as_it_was(small_encoder, model):
    before = small_encoder.digest
    with torch.no_grad():
        for value in model.network.parameters():
            value.add_(1.0)
    assert replace(small_encoder).digest == before
    assert model.encoder.network.encoder is model.network.encoder


def test_equal_seeds_give_equal_decoders_and_others_do_not(small_encoder):
    adapted = adapt_encoder(small_encoder, side=32, spacing=5.0)
    assert start_model(adapted, BALL, seed=1).digest == start_model(adapted, BALL, seed=1).digest
    assert start_model(adapted, BALL, seed=1).digest != start_model(adapted, BALL, seed=2).digest


def test_a_convolutional_encoder_can_be_segmented_with():
    pytest.importorskip("monai")
    encoder = load_network(parse_model("resnet3d:10"), device="cpu")
    model = start_model(adapt_encoder(encoder, side=32, spacing=2.0), BALL)
    assert model.network(torch.rand(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)


def test_the_loss_is_dice_over_the_batch_plus_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 4, 4, 4))
    chances = logits.softmax(1).numpy()
    truth = np.eye(3)[labels.numpy()].transpose(0, 4, 1, 2, 3)
    dice = [(2 * (chances[:, k] * truth[:, k]).sum() + 1) / (chances[:, k].sum() + truth[:, k].sum() + 1) for k in (1, 2)]
    entropy = -np.log((chances * truth).sum(1)).mean()
    assert float(measure_loss(logits, labels)) == pytest.approx(1 - np.mean(dice) + entropy, abs=1e-6)


def test_a_perfect_answer_costs_next_to_nothing():
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    labels[:, 2:5] = 1
    logits = 40.0 * torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
    assert float(measure_loss(logits, labels)) < 1e-3


def test_a_training_starts_from_the_shares_of_the_classes(make_ball, model):
    case = make_case(make_ball, 0)
    share = float((case.labels > 0).mean())
    np.testing.assert_allclose(measure_shares([case, case], 2), [1 - share, share])
    fit_model(model, [case], [], Fitting(steps=1, batch=1, rate=1e-9), lambda step, loss: None)
    np.testing.assert_allclose(model.network.decoder.classify.bias.detach(), np.log([1 - share, share]), atol=1e-5)


def test_a_class_that_is_nowhere_has_a_share_too(make_ball):
    assert measure_shares([make_case(make_ball, 0)], 3)[2] == 1e-7


@given(st.integers(0, 60), st.integers(1, 70))
def test_a_crop_stays_inside_or_holds_the_scan_whole(center, size):
    start, _, _ = place_crop((center, 0, 0), (size, 32, 32), 32)
    if size >= 32:
        assert 0 <= start <= size - 32
    else:
        assert start <= 0
        assert start + 32 >= size


def test_a_crop_beyond_the_scan_is_filled():
    crop = cut_padded(np.ones((3, 40, 40), np.int16), (-14, 4, 8), 32, -1024)
    assert crop.shape == (32, 32, 32)
    assert (crop[14:17] == 1).all()
    assert int((crop == 1).sum()) == 3 * 32 * 32


def test_draws_follow_their_address_and_most_crops_hold_the_structure(make_ball, model):
    cases = [make_case(make_ball, seed) for seed in (0, 1)]
    fitting = Fitting(steps=10)
    draws = [draw_crop(cases, 32, fitting, step, 0) for step in range(60)]
    assert draws == [draw_crop(cases, 32, fitting, step, 0) for step in range(60)]
    assert {draw.case for draw in draws} == {0, 1}
    assert not any(any(draw.flips) for draw in draws)
    assert any(any(draw_crop(cases, 32, replace(fitting, mirror=True), step, 0).flips) for step in range(9))
    _, labels = take_batch(cases, draws, model)
    assert float((labels.sum((1, 2, 3)) > 0).float().mean()) > 0.6


def test_voxels_and_labels_are_mirrored_alike(make_ball, model):
    case = make_case(make_ball, 0)
    draw = replace(draw_crop([case], 32, Fitting(steps=1), 0, 0), start=(2, 1, -1), gain=1.0, offset=0.0)
    plain, labels = take_batch([case], [draw], model)
    flipped, mirrored = take_batch([case], [replace(draw, flips=(True, False, True))], model)
    torch.testing.assert_close(flipped, plain.flip(2, 4))
    assert torch.equal(mirrored, labels.flip(1, 3))
    # The ball's 300 HU of -1000 to 500.
    assert float(plain[0, 0][labels[0] == 1].mean()) == pytest.approx(1300 / 1500, abs=0.01)


def _fit(make_ball, small_encoder: Encoder, steps: int) -> tuple[str, list[float]]:
    """A model trained on two balls: the digest of its weights, and the loss of every step."""
    cases = [make_case(make_ball, seed) for seed in range(3)]
    model = start_model(adapt_encoder(small_encoder, side=32, spacing=5.0), BALL, seed=1)
    losses: list[float] = []
    fitting = Fitting(steps=steps, rate=3e-3, batch=1)
    validations = fit_model(model, cases[:2], cases[2:], fitting, lambda step, loss: losses.append(loss))
    assert {int(row["step"]) for row in validations} == plan_validations(steps)
    return model.digest, losses


def test_a_short_training_learns_the_ball(make_ball, small_encoder):
    _, losses = _fit(make_ball, small_encoder, steps=24)
    assert min(losses[-3:]) < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("steps", "validations"), [(4, []), (20, []), (24, [20, 24]), (120, [90, 100, 110, 120]), (250, [180, 200, 220, 240, 250])]
)
def test_validations_are_in_the_last_third_and_apart(steps, validations):
    assert sorted(plan_validations(steps)) == validations


def test_a_training_repeats_bit_for_bit(make_ball, small_encoder):
    # A few steps: whatever is not addressed shows in the first batches already.
    assert _fit(make_ball, small_encoder, steps=4) == _fit(make_ball, small_encoder, steps=4)
