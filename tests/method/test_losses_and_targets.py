"""Losses and targets equal their formulas in float64; centres, temperatures and queues move as stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from dagman.method.centering import TEMPERATURE_FLOOR, center_and_sharpen, entropy, sinkhorn_knopp, solve_temperature, update_center
from dagman.method.losses import cross_entropy, masked_l1
from dagman.method.targets import TargetRules, Targets


def _logits(rows, prototypes, seed=0, scale=1.0):
    return scale * torch.randn(rows, prototypes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("prototypes", [2, 65])
@pytest.mark.parametrize("tau_s", [0.1, 1.0])
@pytest.mark.parametrize("tau_t", [0.04, 0.5])
def test_cross_entropy_equals_the_formula_in_float64(rows, prototypes, tau_s, tau_t):
    teacher, student, center = _logits(rows, prototypes, 1), _logits(rows, prototypes, 2), _logits(1, prototypes, 3)[0]
    targets = center_and_sharpen(teacher, center, tau_t)
    p = softmax((teacher.double().numpy() - center.double().numpy()) / tau_t, axis=1)
    expected = -(p * log_softmax(student.double().numpy() / tau_s, axis=1)).sum(axis=1).mean()
    assert cross_entropy(targets, student, tau_s).item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_has_the_gradient_of_the_formula_and_none_for_the_targets():
    targets = center_and_sharpen(_logits(3, 5, 1), torch.zeros(5), 0.1).double().requires_grad_()
    student = _logits(3, 5, 2).double().requires_grad_()
    cross_entropy(targets, student, 0.5).backward()
    expected = (torch.softmax(student.detach() / 0.5, dim=1) - targets.detach()) / 0.5 / 3
    torch.testing.assert_close(student.grad, expected, rtol=1e-4, atol=1e-7)
    assert targets.grad is None


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_masked_l1_counts_masked_voxels_alone(share):
    random = torch.Generator().manual_seed(0)
    prediction, view = (torch.rand(2, 1, 4, 5, 6, generator=random) for _ in range(2))
    hidden = torch.rand(2, 4, 5, 6, generator=random) < share
    error = np.abs(prediction.double().numpy() - view.double().numpy())[:, 0]
    expected = np.mean([row[mask].mean() for row, mask in zip(error, hidden.numpy(), strict=True)])
    assert masked_l1(prediction, view, hidden).item() == pytest.approx(expected, rel=1e-5)
    changed = torch.where(hidden[:, None], prediction, prediction + 9)
    assert masked_l1(changed, view, hidden).item() == pytest.approx(expected, rel=1e-5)


def test_masked_l1_gradient_is_the_sign_over_the_count():
    prediction = torch.tensor([[[[[0.2, 0.9]]]]], requires_grad=True)
    masked_l1(prediction, torch.full((1, 1, 1, 1, 2), 0.5), torch.tensor([[[[True, True]]]])).backward()
    assert prediction.grad.flatten().tolist() == [-0.5, 0.5]


def test_the_centre_follows_the_mean_logit_by_its_momentum():
    center, logits = torch.zeros(4), _logits(6, 4)
    for _ in range(3):
        center = update_center(center, logits, 0.9)
    torch.testing.assert_close(center, logits.mean(dim=0) * (1 - 0.9**3))


@pytest.mark.parametrize(("rows", "prototypes"), [(4, 16), (64, 16), (2, 1024), (1, 8)])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 5e-4])
def test_sinkhorn_equals_the_plain_form_in_float64_where_that_does_not_underflow(rows, prototypes, temperature):
    logits = _logits(rows, prototypes, scale=0.1)
    ours = sinkhorn_knopp(logits, temperature)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(rows))
    if temperature < 0.01:
        return
    q = np.exp(logits.double().numpy() / temperature)
    for _ in range(3):
        q /= q.sum(axis=0, keepdims=True)
        q /= q.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours.numpy(), q, atol=1e-5)


def test_sinkhorn_uses_prototypes_equally_when_rows_are_many():
    probabilities = sinkhorn_knopp(_logits(4000, 8), 0.2, rounds=30)
    torch.testing.assert_close(probabilities.mean(dim=0), torch.full((8,), 1 / 8), atol=1e-3, rtol=0)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_the_solved_temperature_meets_the_target_entropy(target, scale):
    logits = _logits(50, 256, scale=scale)
    temperature = solve_temperature(logits, target)
    centred = logits - logits.mean(dim=0)
    reached = entropy(torch.softmax(centred / temperature, dim=1)).mean().item() / math.log(256)
    assert reached == pytest.approx(target, abs=1e-3)


def test_entropy_of_certain_and_uniform_answers():
    assert entropy(torch.tensor([[1.0, 0.0, 0.0]])).item() == 0
    assert entropy(torch.full((1, 8), 1 / 8)).item() == pytest.approx(math.log(8))


def test_temperature_is_smoothed_over_steps_in_its_logarithm():
    targets = Targets(TargetRules(centering="sinkhorn", target_entropy=0.5), 64, ("ampd",))
    first, second = _logits(30, 64, 1, scale=1.0), _logits(30, 64, 2, scale=3.0)
    _, tau_1 = targets.update("ampd", first, 0.04)
    _, tau_2 = targets.update("ampd", second, 0.04)
    assert tau_1 == pytest.approx(solve_temperature(first, 0.5))
    assert math.log(tau_2) == pytest.approx(0.9 * math.log(tau_1) + 0.1 * math.log(solve_temperature(second, 0.5)))


def test_temperature_never_falls_below_its_floor():
    targets = Targets(TargetRules(centering="sinkhorn", target_entropy=0.5), 64, ("ampd",))
    assert targets.update("ampd", _logits(30, 64, scale=1e-9), 0.04)[1] >= TEMPERATURE_FLOOR


def test_scheduled_temperature_is_taken_when_none_is_solved():
    targets = Targets(TargetRules(), 16, ("gitd",))
    logits = _logits(5, 16)
    probabilities, temperature = targets.update("gitd", logits, 0.05)
    assert temperature == 0.05
    torch.testing.assert_close(probabilities, torch.softmax(logits / 0.05, dim=1))
    torch.testing.assert_close(targets.centers["gitd"], 0.1 * logits.mean(dim=0))


def test_the_queue_keeps_the_newest_rows_less_the_mean_of_their_step_and_widens_sinkhorn():
    targets = Targets(TargetRules(centering="sinkhorn", queue=6), 16, ("aitd", "ampd"))
    batches = [_logits(4, 16, seed) + seed for seed in range(3)]
    for batch in batches:
        probabilities, _ = targets.update("aitd", batch, 0.1)
    centred = [batch - batch.mean(dim=0) for batch in batches]
    torch.testing.assert_close(targets.queues["aitd"], torch.cat(centred)[-6:])
    torch.testing.assert_close(probabilities, sinkhorn_knopp(torch.cat([torch.cat(centred[:2])[-6:], centred[2]]), 0.1)[-4:])
    assert "ampd" not in targets.queues


def test_state_is_restored_whole():
    rules = TargetRules(centering="sinkhorn", target_entropy=0.5, queue=8)
    one, other = Targets(rules, 16), Targets(rules, 16)
    for name in ("ampd", "aitd", "gitd"):
        one.update(name, _logits(5, 16), 0.04)
    other.restore(*one.state())
    again = _logits(5, 16, 9)
    for name in ("ampd", "aitd", "gitd"):
        ours, theirs = one.update(name, again, 0.04), other.update(name, again, 0.04)
        assert torch.equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]
