"""Proves the measures of time and event against lifelines, by hand, and against the values of the code before scikit-survival's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagman.evaluation import survival

with warnings.catch_warnings():
    # It warns on import with newer pandas or numpy; that is its own.
    warnings.simplefilter("ignore")
    lifelines = pytest.importorskip("lifelines")
    from lifelines.statistics import multivariate_logrank_test


def _cohort(seed: int, items: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    risk = np.round(random.normal(size=items), 1)
    # Whole months, so that times tie.
    lived = np.ceil(12 * random.exponential(np.exp(-risk)))
    followed = np.ceil(random.uniform(1, 30, items))
    return np.minimum(lived, followed), lived <= followed, risk


def test_pairs_of_a_hand_worked_case():
    # Comparable: 1-2, 1-3, 1-4, 3-4 (2 is censored before all later ones); wrong: 1-4; equal: 3-4.
    comparable, concordant = survival.comparable_pairs([1, 2, 3, 4], [1, 0, 1, 0], [3, 1, 4, 4])
    assert np.argwhere(comparable).tolist() == [[0, 1], [0, 2], [0, 3], [2, 3]]
    assert concordant[comparable > 0].tolist() == [1, 0, 0, 0.5]
    weighted, _ = survival.comparable_pairs([1, 2, 3, 4], [1, 0, 1, 0], [3, 1, 4, 4], weights=[2, 5, 3, 7])
    assert weighted[comparable > 0].tolist() == [2, 2, 2, 3]
    # Of equal times a censored item outlives one with the event; two events, or two censorings, have no order.
    assert survival.comparable_pairs([5, 5, 5], [1, 1, 0], [1, 2, 3])[0].tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]


@given(st.integers(0, 1000))
def test_kaplan_meier_and_its_interval_are_lifelines(seed):
    time, event, _ = _cohort(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = lifelines.KaplanMeierFitter().fit(time, event)
    found = survival.kaplan_meier(time, event)
    np.testing.assert_allclose(found.times, fitted.survival_function_.index)
    np.testing.assert_allclose(found.survival, fitted.survival_function_["KM_estimate"], atol=1e-12)
    inside = (found.survival > 0) & (found.survival < 1)
    bounds = fitted.confidence_interval_.to_numpy()
    np.testing.assert_allclose(found.low[inside], bounds[inside, 0])
    np.testing.assert_allclose(found.high[inside], bounds[inside, 1])
    risky = survival.count_at_risk(time, found.times[1:])
    np.testing.assert_array_equal(risky, fitted.event_table["at_risk"].to_numpy()[1:])


def test_kaplan_meier_of_a_hand_worked_case():
    found = survival.kaplan_meier([2, 4, 4, 6], [1, 0, 1, 1])
    assert found.times.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(found.survival, [1, 3 / 4, 1 / 2, 0])
    np.testing.assert_allclose(found.at([0, 1.9, 2, 5, 99]), [1, 1, 3 / 4, 1 / 2, 0])
    assert survival.count_at_risk([2, 4, 4, 6], [0, 2, 3, 4, 7]).tolist() == [4, 4, 3, 3, 0]


@given(st.integers(0, 1000), st.integers(2, 4))
def test_the_log_rank_test_is_lifelines(seed, groups):
    time, event, _ = _cohort(seed)
    group = np.random.default_rng(seed).integers(0, groups, len(time))
    wanted = multivariate_logrank_test(time, group, event)
    found = survival.logrank_test(time, event, group)
    assert (found.statistic, found.p) == pytest.approx((wanted.test_statistic, wanted.p_value))
    assert found.degrees == len(np.unique(group)) - 1


@pytest.mark.parametrize(
    ("time", "event", "group"),
    [([1, 2], [1, 1], "aa"), ([1, 2], [0, 0], "ab"), ([1, 2], [0, 1], "ab"), ([2, 2], [1, 1], "ab")],
    ids=["one group", "no event", "a group that is at risk at no event", "all at once"],
)
def test_a_log_rank_test_of_nothing_is_undefined(time, event, group):
    test = survival.logrank_test(time, event, list(group))
    assert np.isnan([test.statistic, test.p]).all()
    assert test.degrees == len(set(group)) - 1


def test_calibration_finds_a_model_that_knows_the_truth_calibrated():
    random = np.random.default_rng(0)
    rate = random.uniform(0.02, 0.2, 4000)
    lived, followed = random.exponential(1 / rate), random.uniform(5, 30, 4000)
    found = survival.calibrate_survival(np.minimum(lived, followed), lived <= followed, np.exp(-5 * rate), horizon=5)
    assert found.counts.tolist() == [1000] * 4
    assert np.all(np.diff(found.predicted) > 0)
    np.testing.assert_allclose(found.observed, found.predicted, atol=0.04)
    assert np.all((found.low < found.observed) & (found.observed < found.high))


def test_times_lie_before_the_last_and_there_are_none_without_events():
    time, event, _ = _cohort(1, items=200)
    times = survival.choose_times(time, event)
    assert len(times) > 3
    assert time[event].min() <= times.min()
    assert times.max() < time.max()
    assert survival.choose_times([1, 2], [0, 0]).size == 0
    assert survival.choose_times([4, 4], [1, 1]).size == 0


def test_values_are_those_of_the_code_before_scikit_survivals():
    time, event, risk = _cohort(11, items=40)
    at = [0, 1, 2, 4, 8, 15]
    curve = survival.kaplan_meier(time, event)
    places = np.searchsorted(curve.times, at, side="right") - 1
    survivals = [1.0, 0.825, 0.65, 0.542857142857, 0.405300581771, 0.270200387847]
    np.testing.assert_allclose(curve.at(at), survivals, rtol=0, atol=1e-9)
    low = [1.0, 0.667656226355, 0.481753525836, 0.375392997864, 0.241671239176, 0.1211765425]
    np.testing.assert_allclose(curve.low[places], low, rtol=0, atol=1e-9)
    high = [1.0, 0.91246508222, 0.775615368118, 0.683238528634, 0.563087209432, 0.444247002339]
    np.testing.assert_allclose(curve.high[places], high, rtol=0, atol=1e-9)
    censoring = [1.0, 1.0, 1.0, 0.828947368421, 0.67850877193, 0.462619617225]
    np.testing.assert_allclose(survival.censoring_survival(time, event, at), censoring, rtol=0, atol=1e-9)
    two, three = survival.logrank_test(time, event, risk > 0), survival.logrank_test(time, event, np.arange(40) % 3)
    assert (two.statistic, two.degrees, two.p) == pytest.approx((8.734243777701, 1, 0.003122888066), abs=1e-9)
    assert (three.statistic, three.degrees, three.p) == pytest.approx((0.548921339285, 2, 0.759981894021), abs=1e-9)
    parts = survival.calibrate_survival(time, event, np.exp(-np.exp(risk) / 3), 4, groups=3)
    np.testing.assert_allclose(parts.predicted, [0.460982118831, 0.743608123371, 0.876898528612], rtol=0, atol=1e-9)
    np.testing.assert_allclose(parts.observed, [0.357142857143, 0.538461538462, 0.755244755245], rtol=0, atol=1e-9)
    np.testing.assert_allclose(parts.low, [0.130346216251, 0.247657327769, 0.41609002547], rtol=0, atol=1e-9)
    np.testing.assert_allclose(parts.high, [0.594350074123, 0.759904440261, 0.914052945195], rtol=0, atol=1e-9)


def test_an_interval_is_undefined_where_everyone_has_had_the_event():
    curve = survival.kaplan_meier([1, 2, 3], [0, 1, 1])
    assert curve.survival.tolist() == [1, 1, 0.5, 0]
    assert np.isnan([curve.low[-1], curve.high[-1]]).all()
    assert (curve.low[1], curve.high[1]) == (1, 1)
