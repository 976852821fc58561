"""Schedules are pure functions of the global step; the teacher is the closed form of its moving average."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from dagman.method.schedules import freeze_last_layer, learning_rate, teacher_momentum, teacher_temperature
from dagman.method.teacher import update_teacher


def test_learning_rate_rises_linearly_then_falls_to_its_end():
    rates = [learning_rate(step, 100, peak=1.0, end=0.1, warmup=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_momentum_is_a_cosine_over_all_steps_and_reaches_its_end():
    values = [teacher_momentum(step, 51, start=0.996, end=1.0) for step in range(51)]
    assert values[0] == pytest.approx(0.996)
    assert values[25] == pytest.approx(0.998)
    assert values[-1] == 1.0
    assert values == sorted(values)


def test_temperature_rises_over_its_warm_up_then_stays():
    values = [teacher_temperature(step, 80, start=0.04, end=0.07, warmup=30 / 80) for step in range(80)]
    assert values[0] == pytest.approx(0.04)
    assert values[15] == pytest.approx(0.055)
    assert set(values[30:]) == {0.07}


@pytest.mark.parametrize(("steps", "frozen"), [(6, 1), (800, 1), (8000, 10), (260300, 325)])
def test_last_layers_are_frozen_for_one_epoch_of_eight_hundred(steps, frozen):
    assert [freeze_last_layer(step, steps, epochs=1) for step in (0, frozen - 1, frozen, steps - 1)] == [True, True, False, False]
    assert not any(freeze_last_layer(step, steps, epochs=0) for step in range(min(steps, 100)))


def test_one_step_runs_have_schedules_too():
    assert math.isfinite(learning_rate(0, 1, peak=1.0, end=0.1, warmup=0.1))
    assert teacher_momentum(0, 1, start=0.99, end=1.0) == 0.99


def test_the_teacher_equals_the_closed_form_over_many_steps():
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    teacher.load_state_dict(student.state_dict())
    weights, momenta = [student.weight.detach().double().clone()], [0.9 + 0.001 * i for i in range(60)]
    for momentum in momenta:
        with torch.no_grad():
            student.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(len(weights))))
        weights.append(student.weight.detach().double().clone())
        update_teacher(teacher, student, momentum)
    # theta_T = prod(m) theta_0 + sum_t (1 - m_t) prod_{s>t}(m_s) theta_t
    expected = math.prod(momenta) * weights[0]
    for t, momentum in enumerate(momenta):
        expected = expected + (1 - momentum) * math.prod(momenta[t + 1 :]) * weights[t + 1]
    torch.testing.assert_close(teacher.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_momentum_one_leaves_the_teacher_as_it_is():
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    before = teacher.weight.detach().clone()
    update_teacher(teacher, student, 1.0)
    assert torch.equal(teacher.weight, before)
