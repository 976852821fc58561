"""The teacher's memory: closed forms of what an average keeps, and momenta solved so that short runs forget their first weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagman.method.schedules import teacher_momentum
from dagman.settings import load_settings, resolve_settings
from dagman.settings.momentum import list_momenta, measure_memory, solve_momentum


def _track(momenta: list[float]) -> tuple[float, float]:
    """Share of the first weights, and average age, by carrying the weight of each step along."""
    shares = [1.0]
    for momentum in momenta:
        shares = [share * momentum for share in shares] + [1 - momentum]
    ages = [len(momenta), *range(len(momenta) - 1, -1, -1)]
    return shares[0], sum(share * age for share, age in zip(shares, ages, strict=True))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_memory_equals_the_weights_carried_along_step_by_step(momenta):
    memory = measure_memory(np.array(momenta))
    first, age = _track(momenta)
    assert memory.first_weights == pytest.approx(first, abs=1e-12)
    assert memory.age == pytest.approx(age, abs=1e-9)


def test_a_constant_momentum_is_as_old_as_its_geometric_series():
    memory = measure_memory(np.full(500, 0.9))
    assert memory.first_weights == pytest.approx(0.9**500)
    assert memory.age == pytest.approx(0.9 / 0.1)


@pytest.mark.parametrize(("steps", "start", "left"), [(80, 0.99, 0.67), (300, 0.99, 0.22), (1000, 0.996, 0.13)])
def test_what_was_found_of_a_rising_momentum_in_short_runs(steps, start, left):
    assert measure_memory(list_momenta(steps, start, 1.0)).first_weights == pytest.approx(left, abs=0.01)


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0, 1))
def test_the_schedule_is_that_of_the_training(steps, start, end):
    momenta = list_momenta(steps, start, end)
    for step in {0, steps // 3, steps - 1}:
        assert momenta[step] == pytest.approx(teacher_momentum(step, steps, start=start, end=end), abs=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("steps", [6, 80, 300, 1000, 5000])
def test_a_short_run_has_the_age_asked_for_and_keeps_below_one_per_cent_of_its_first_weights(steps, share):
    start, end = solve_momentum(steps, share)
    memory = measure_memory(list_momenta(steps, start, end))
    assert memory.age == pytest.approx(share * steps, rel=1e-3)
    assert memory.first_weights < 0.01
    assert 0 <= start <= end <= 1


@pytest.mark.parametrize("steps", [60_000, 260_300])
def test_a_long_run_keeps_the_papers_momentum(steps):
    assert solve_momentum(steps, 0.2) == (0.996, 1.0)


@given(st.integers(20, 15_000))
def test_one_step_more_changes_the_momenta_little(steps):
    (start, end), (longer_start, longer_end) = solve_momentum(steps, 0.2), solve_momentum(steps + 1, 0.2)
    assert abs(longer_start - start) < 20 / steps**2 + 2e-6
    assert abs(longer_end - end) < 20 / steps**2 + 2e-6


def test_a_momentum_that_was_given_stays_and_the_other_is_solved_for_it():
    start, end = solve_momentum(400, 0.2, 0.9)
    assert start == 0.9
    assert measure_memory(list_momenta(400, start, end)).age == pytest.approx(80, rel=1e-3)


@pytest.mark.parametrize("batch", range(2, 130, 2))
def test_rate_and_prototypes_change_steadily_with_the_batch(batch):
    def resolve(views: int):
        return resolve_settings(load_settings("small", assignments=[f"train.batch={views}"])[0])[0]

    here, next_ = resolve(batch), resolve(batch + 2)
    assert 1 <= float(next_.optim.lr) / float(here.optim.lr) < 1.1
    assert 1 <= int(next_.projector.prototypes) / int(here.projector.prototypes) < 1.25
    micro, parts = int(here.train.micro_batch), math.ceil(batch / int(here.train.micro_batch))
    assert micro % 2 == 0
    assert micro <= 16
    assert parts == math.ceil(batch / 16)
