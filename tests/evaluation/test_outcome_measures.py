"""Proves the measures of out-of-fold risks: equal to the whole-table ones in one fold, never across folds, groups by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sksurv.metrics import concordance_index_censored, concordance_index_ipcw, cumulative_dynamic_auc, integrated_brier_score
from sksurv.util import Surv

from dagman.evaluation import survival
from dagman.evaluation.outcome_metrics import (
    OutOfFold,
    compare_outcome,
    describe_auc,
    describe_calibration,
    describe_groups,
    explain_undefined,
    measure_outcome,
    prepare_measure,
)
from dagman.notes import warn


def _predicted(seed: int = 0, items: int = 80, columns: int = 1, folds: int = 1) -> OutOfFold:
    random = np.random.default_rng(seed)
    truth = random.normal(size=items)
    lived, followed = np.ceil(12 * random.exponential(np.exp(-truth))), np.ceil(random.uniform(1, 30, items))
    time, event = np.minimum(lived, followed), lived <= followed
    risk = np.round(truth[:, None] + random.normal(size=(items, columns)), 1)
    times = survival.choose_times(time, event)
    return OutOfFold(
        patients=np.array([f"p{i:03d}" for i in range(items)]),
        time=time,
        event=event,
        fold=random.integers(folds, size=(items, columns)),
        risk=risk,
        high=risk > 0,
        uncensored=np.repeat(survival.censoring_survival(time, event, time)[:, None], columns, axis=1),
        times=times,
        survival=np.exp(-times * np.exp(risk)[..., None] / 12),
    )


@pytest.mark.parametrize("seed", range(10))
def test_in_one_fold_every_measure_is_scikit_survivals(seed):
    found = _predicted(seed)
    rows = np.arange(len(found.time))
    cohort, risk = Surv.from_arrays(found.event, found.time), found.risk[:, 0]
    areas, mean = cumulative_dynamic_auc(cohort, cohort, risk, found.times)
    wanted = {
        "harrell_c": concordance_index_censored(found.event, found.time, risk)[0],
        "uno_c": concordance_index_ipcw(cohort, cohort, risk, tau=found.horizon)[0],
        "dynamic_auc": mean,
        "integrated_brier": integrated_brier_score(cohort, cohort, found.survival[:, 0], found.times),
    }
    assert {name: prepare_measure(name, found)(rows) for name in wanted} == pytest.approx(wanted, abs=1e-12)
    assert describe_auc(found)["auc"] == pytest.approx(areas, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_a_resample_is_scikit_survivals_measure_of_the_drawn_rows(seed):
    found = _predicted(seed, items=30)
    rows = np.random.default_rng(seed).integers(30, size=30)
    cohort, risk = Surv.from_arrays(found.event, found.time), found.risk[rows, 0]
    wanted = {
        "harrell_c": concordance_index_censored(found.event[rows], found.time[rows], risk)[0],
        "uno_c": concordance_index_ipcw(cohort, cohort[rows], risk, tau=found.horizon)[0],
    }
    assert {name: prepare_measure(name, found)(rows) for name in wanted} == pytest.approx(wanted, abs=1e-12)


def test_values_over_folds_are_those_of_the_code_before_scikit_survivals():
    found = _predicted(seed=3, items=60, columns=2, folds=3)
    wanted = {
        "harrell_c": 0.6671018276762402,
        "uno_c": 0.6730117659424868,
        "dynamic_auc": 0.7538249339648766,
        "integrated_brier": 0.1894494422865338,
    }
    assert {name: prepare_measure(name, found)(np.arange(60)) for name in wanted} == pytest.approx(wanted, abs=1e-9)
    drawn = np.random.default_rng(5).integers(60, size=60)
    wanted = {
        "harrell_c": 0.6391982182628062,
        "uno_c": 0.6376949574086174,
        "dynamic_auc": 0.7122949160876004,
        "integrated_brier": 0.235479909739873,
    }
    assert {name: prepare_measure(name, found)(drawn) for name in wanted} == pytest.approx(wanted, abs=1e-9)
    areas = [
        *(0.789855072464, 0.789855072464, 0.724363161332, 0.744316441893, 0.792950376537),
        *(0.748951001125, 0.778205192915, 0.718989047654, 0.724680327878),
    ]
    assert describe_auc(found)["auc"] == pytest.approx(areas, abs=1e-9)


@pytest.mark.parametrize("name", ["harrell_c", "uno_c", "dynamic_auc"])
def test_a_fold_with_another_scale_changes_nothing(name):
    found = _predicted(columns=2, folds=3)
    shifted = found.risk * (1 + found.fold) + 100.0 * found.fold
    moved = OutOfFold(**{**vars(found), "risk": shifted})
    rows = np.arange(len(found.time))
    assert prepare_measure(name, moved)(rows) == pytest.approx(prepare_measure(name, found)(rows))


def test_intervals_hold_their_value_and_no_events_in_time_leave_two_measures():
    found = _predicted(items=40, columns=2, folds=2)
    measured = measure_outcome(found, draws=100)
    assert set(measured) == {"harrell_c", "uno_c", "dynamic_auc", "integrated_brier"}
    assert all(interval.low <= interval.value <= interval.high for interval in measured.values())
    none = OutOfFold(**{**vars(found), "times": found.times[:0], "survival": found.survival[:, :, :0]})
    assert set(measure_outcome(none, draws=20)) == {"harrell_c", "uno_c"}
    assert describe_calibration(none) is None


def test_a_concordance_of_few_pairs_states_their_number_and_small_groups_are_not_calibrated():
    found = _predicted(items=12, columns=2, folds=2)
    time, event, fold = found.time, found.event, found.fold
    early = event & (time < found.horizon)
    measured = measure_outcome(found, draws=20)
    for name, seen in (("harrell_c", event), ("uno_c", early)):
        # By the definition: the earlier of two times is an event, within one fold, averaged over repeats.
        pairs = [
            (time[i] < time[j] and seen[i]) or (time[i] == time[j] and seen[i] and not seen[j])
            for column in range(2)
            for i in range(12)
            for j in range(12)
            if fold[i, column] == fold[j, column]
        ]
        assert measured[name].how.endswith(f"; only {round(sum(pairs) / 2)} pairs of patients compared in each repeat")
    assert all("; only" not in interval.how for interval in measure_outcome(_predicted(folds=2), draws=20).values())
    assert describe_calibration(found) is None
    assert describe_calibration(_predicted(items=29, columns=2, folds=2))["counts"].tolist() == [15, 14]


def test_a_measure_that_the_patients_do_not_allow_is_left_out_and_explained_never_nan():
    found = _predicted(items=40, columns=2, folds=2)
    assert explain_undefined(found) == []
    # Half have the event on the day on which the others are lost: the order of such a pair is known, weights of censoring are not.
    time, event = np.full(40, 12.0), np.arange(40) % 2 == 0
    equal = OutOfFold(
        **{
            **vars(found),
            "time": time,
            "event": event,
            "uncensored": np.repeat(survival.censoring_survival(time, event, time)[:, None], 2, axis=1),
            "times": survival.choose_times(time, event),
            "survival": found.survival[:, :, :0],
        }
    )
    measured = measure_outcome(equal, draws=20)
    assert set(measured) == {"harrell_c"}
    assert 0 <= measured["harrell_c"].value <= 1
    assert explain_undefined(equal) == [
        warn("not computed: Uno's C, the time-dependent AUC, the integrated Brier score, as all times are equal (12)")
    ]
    none = OutOfFold(**{**vars(found), "times": found.times[:1], "survival": found.survival[:, :, :1]})
    assert explain_undefined(none) == [
        warn("not computed: the time-dependent AUC, as fewer than two times can be evaluated"),
        warn("not computed: the integrated Brier score, as fewer than two times can be evaluated"),
    ]


def test_a_model_against_itself_differs_by_nothing_and_against_the_truth_by_much():
    found = _predicted()
    assert compare_outcome("harrell_c", found, found, draws=50).value == 0
    best = OutOfFold(**{**vars(found), "risk": -found.time[:, None]})
    assert compare_outcome("harrell_c", best, found, draws=200).low > 0


def test_groups_are_kaplan_meier_by_hand():
    # Low: events at 4 and 8 of three patients. High: events at 1 and 2, the third censored at 3.
    found = OutOfFold(
        patients=np.arange(6).astype(str),
        time=np.array([4, 6, 8, 1, 2, 3.0]),
        event=np.array([1, 0, 1, 1, 1, 0], dtype=bool),
        fold=np.zeros((6, 1), dtype=np.int64),
        risk=np.array([[-1], [-1], [-1], [1], [1], [1.0]]),
        high=np.array([[0], [0], [0], [1], [1], [1]], dtype=bool),
        uncensored=np.ones((6, 1)),
        times=np.array([2.0, 4.0]),
        survival=np.ones((6, 1, 2)),
    )
    described = describe_groups(found)
    low, high = described["groups"]
    assert (low["name"], low["patients"], low["events"], high["events"]) == ("low risk", 3, 2, 2)
    assert low["times"].tolist() == [0, 4, 6, 8]
    assert low["survival"] == pytest.approx([1, 2 / 3, 2 / 3, 0])
    assert high["survival"] == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3])
    assert described["ticks"].tolist() == [0, 2, 4, 6, 8]
    assert low["at_risk"].tolist() == [3, 3, 3, 2, 1]
    assert high["at_risk"].tolist() == [3, 2, 0, 0, 0]
    test = survival.logrank_test(found.time, found.event, found.high[:, 0])
    assert (described["p"], described["p_all"]) == (test.p, [test.p])
