"""Proves the measures of time and event against lifelines and scikit-survival, with ties and heavy censoring, and by hand."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagman.errors import MissingExtraError
from dagman.evaluation import survival

with warnings.catch_warnings():
    # Both warn on import with newer pandas or numpy; that is theirs.
    warnings.simplefilter("ignore")
    lifelines = pytest.importorskip("lifelines")
    sksurv_metrics = pytest.importorskip("sksurv.metrics")
    from lifelines.statistics import multivariate_logrank_test
    from sksurv.util import Surv


def _cohort(seed: int, items: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    risk = np.round(random.normal(size=items), 1)
    # Whole months, so that times tie.
    lived = np.ceil(12 * random.exponential(np.exp(-risk)))
    followed = np.ceil(random.uniform(1, 30, items))
    return np.minimum(lived, followed), lived <= followed, risk


@given(st.integers(0, 1000))
def test_harrells_concordance_is_scikit_survivals(seed):
    time, event, risk = _cohort(seed)
    wanted = sksurv_metrics.concordance_index_censored(event, time, risk)[0]
    assert survival.measure_concordance(time, event, risk) == pytest.approx(wanted)


@given(st.integers(0, 1000))
def test_unos_concordance_is_scikit_survivals(seed):
    train_time, train_event, _ = _cohort(seed + 5000, items=100)
    time, event, risk = _cohort(seed)
    horizon = float(np.quantile(train_time, 0.9))
    train, test = Surv.from_arrays(train_event, train_time), Surv.from_arrays(event, np.minimum(time, train_time.max()))
    wanted = sksurv_metrics.concordance_index_ipcw(train, test, risk, tau=horizon)[0]
    found = survival.measure_uno_concordance(train_time, train_event, np.minimum(time, train_time.max()), event, risk, horizon)
    assert found == pytest.approx(wanted)


def test_concordance_of_a_hand_worked_case():
    # Comparable: 1-2, 1-3, 1-4, 3-4 (2 is censored before all later ones); wrong: 1-4; equal: 3-4.
    assert survival.measure_concordance([1, 2, 3, 4], [1, 0, 1, 0], [3, 1, 4, 4]) == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert np.isnan(survival.measure_concordance([1, 2], [0, 0], [1, 2]))
    assert np.isnan(survival.measure_concordance([], [], []))


@given(st.integers(0, 1000))
def test_kaplan_meier_and_its_interval_are_lifelines(seed):
    time, event, _ = _cohort(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = lifelines.KaplanMeierFitter().fit(time, event)
    found = survival.estimate_survival(time, event)
    np.testing.assert_allclose(found.times, fitted.survival_function_.index)
    np.testing.assert_allclose(found.survival, fitted.survival_function_["KM_estimate"], atol=1e-12)
    inside = (found.survival > 0) & (found.survival < 1)
    bounds = fitted.confidence_interval_.to_numpy()
    np.testing.assert_allclose(found.low[inside], bounds[inside, 0])
    np.testing.assert_allclose(found.high[inside], bounds[inside, 1])
    risky = survival.count_at_risk(time, found.times[1:])
    np.testing.assert_array_equal(risky, fitted.event_table["at_risk"].to_numpy()[1:])


def test_kaplan_meier_of_a_hand_worked_case():
    found = survival.estimate_survival([2, 4, 4, 6], [1, 0, 1, 1])
    assert found.times.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(found.survival, [1, 3 / 4, 1 / 2, 0])
    np.testing.assert_allclose(found.at([0, 1.9, 2, 5, 99]), [1, 1, 3 / 4, 1 / 2, 0])
    assert survival.count_at_risk([2, 4, 4, 6], [0, 2, 3, 4, 7]).tolist() == [4, 4, 3, 3, 0]


@given(st.integers(0, 1000), st.integers(2, 4))
def test_the_log_rank_test_is_lifelines(seed, groups):
    time, event, _ = _cohort(seed)
    group = np.random.default_rng(seed).integers(0, groups, len(time))
    wanted = multivariate_logrank_test(time, group, event)
    found = survival.compare_survival(time, event, group)
    assert (found.statistic, found.p) == pytest.approx((wanted.test_statistic, wanted.p_value))
    assert found.degrees == len(np.unique(group)) - 1


@pytest.mark.parametrize(("event", "group"), [([1, 1], ["a", "a"]), ([0, 0], ["a", "b"])])
def test_a_log_rank_test_of_nothing_is_undefined(event, group):
    assert np.isnan(survival.compare_survival([1, 2], event, group).p)


def test_calibration_finds_a_model_that_knows_the_truth_calibrated():
    random = np.random.default_rng(0)
    rate = random.uniform(0.02, 0.2, 4000)
    lived, followed = random.exponential(1 / rate), random.uniform(5, 30, 4000)
    found = survival.calibrate_survival(np.minimum(lived, followed), lived <= followed, np.exp(-5 * rate), horizon=5)
    assert found.counts.tolist() == [1000] * 4
    assert np.all(np.diff(found.predicted) > 0)
    np.testing.assert_allclose(found.observed, found.predicted, atol=0.04)
    assert np.all((found.low < found.observed) & (found.observed < found.high))


def test_brier_score_and_dynamic_auc_rank_a_good_model_above_a_constant_one():
    train_time, train_event, _ = _cohort(1, items=200)
    time, event, risk = _cohort(2, items=200)
    times = survival.choose_times(train_time, time, event)
    assert len(times) > 3
    marginal = np.tile(survival.estimate_survival(train_time, train_event).at(times), (200, 1))
    good = np.exp(-np.outer(np.exp(risk) / 12, times))
    briers = [
        survival.measure_integrated_brier(train_time, train_event, time, event, chances, times) for chances in (good, marginal)
    ]
    assert 0 < briers[0] < briers[1] < 0.3
    areas, mean = survival.measure_dynamic_auc(train_time, train_event, time, event, risk, times)
    assert areas.shape == times.shape
    assert 0.7 < mean < 0.95


def test_follow_up_beyond_the_training_datas_is_cut_not_refused():
    train_time, train_event, _ = _cohort(3)
    time, event, risk = _cohort(4)
    time = time * 3
    times = survival.choose_times(train_time, time, event)
    assert times.max() < train_time.max()
    assert np.isfinite(survival.measure_dynamic_auc(train_time, train_event, time, event, risk, times)[1])
    assert np.isfinite(survival.measure_uno_concordance(train_time, train_event, time, event, risk))


def test_without_events_there_are_no_times_and_no_scores():
    assert survival.choose_times([1, 2], [1, 2], [0, 0]).size == 0
    assert np.isnan(survival.measure_integrated_brier([1, 2], [1, 1], [1, 2], [0, 0], np.empty((2, 0)), []))
    assert np.isnan(survival.measure_dynamic_auc([1, 2], [1, 1], [1, 2], [0, 0], [1, 2], [])[1])


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sksurv.metrics", None)
    monkeypatch.setitem(sys.modules, "sksurv", None)
    with pytest.raises(MissingExtraError, match=r"needs scikit-survival, which is not installed. pip install 'dagman\[survival\]'"):
        survival.measure_dynamic_auc([1], [1], [1], [1], [1], [1])
