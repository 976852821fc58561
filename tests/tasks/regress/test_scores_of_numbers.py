"""Proves the measures of a regression against scikit-learn and SciPy, and within folds by hand; noise is no signal."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from dagman.tasks.regress.scores import COMPARED, MEASURES, Predicted, compare_numbers, measure_numbers, prepare_measure


def _predict(
    seed: int = 0, items: int = 60, columns: int = 1, folds: int = 1, signal: float = 1.0, model: str = "m", error: float = 0.5
) -> Predicted:
    random = np.random.default_rng(seed)
    values = np.round(random.normal(size=items), 1)
    return Predicted(
        model=model,
        method="ridge",
        subset="100%",
        values=values,
        patients=np.repeat(np.arange(items // 2), 2).astype(str),
        predicted=np.round(signal * values[:, None] + error * np.random.default_rng(seed + 99).normal(size=(items, columns)), 1),
        folds=random.permuted(np.tile(np.arange(items) % folds, (columns, 1)), axis=1).T,
    )


@pytest.mark.parametrize("seed", range(3))
def test_in_one_fold_every_measure_is_scikit_learns_or_scipys_on_resamples_too(seed):
    one = _predict(seed)
    for rows in (np.arange(60), np.random.default_rng(seed).integers(60, size=60)):
        values, predicted = one.values[rows], one.predicted[rows, 0]
        wanted = {
            "r2": r2_score(values, predicted),
            "mae": mean_absolute_error(values, predicted),
            "rmse": root_mean_squared_error(values, predicted),
            "spearman": spearmanr(values, predicted).statistic,
        }
        assert {name: prepare_measure(name, one)(rows) for name in MEASURES} == pytest.approx(wanted)


def test_ranks_are_compared_within_folds_and_repeats_are_averaged():
    one = _predict(columns=2, folds=3)
    by_hand = [
        spearmanr(one.values[members], one.predicted[members, column]).statistic
        for column in range(2)
        for members in (one.folds[:, column] == fold for fold in range(3))
    ]
    rows = np.arange(60)
    assert prepare_measure("spearman", one)(rows) == pytest.approx(np.mean(by_hand))
    assert prepare_measure("rmse", one)(rows) == pytest.approx(
        np.mean([root_mean_squared_error(one.values, column) for column in one.predicted.T])
    )


def test_the_mean_of_the_training_part_is_no_order_and_worth_nothing():
    one = _predict(folds=5)
    means = np.array([one.values[one.folds[:, 0] != fold].mean() for fold in range(5)])
    dull = Predicted(**{**vars(one), "predicted": means[one.folds]})
    rows = np.arange(60)
    # Ranked over all folds, it would seem to order items the wrong way round.
    assert spearmanr(one.values, dull.predicted[:, 0]).statistic < -0.1
    assert np.isnan(prepare_measure("spearman", dull)(rows))
    assert -0.2 < prepare_measure("r2", dull)(rows) < 0
    assert np.isnan(prepare_measure("r2", dull)(np.zeros(4, dtype=np.int64)))


def test_intervals_hold_their_value_are_of_patients_and_are_widened_where_models_are_refitted():
    measured = {row.name: row.interval for row in measure_numbers(_predict(columns=2, folds=5), resamples=200)}
    assert set(measured) == set(MEASURES)
    assert all(one.low <= one.value <= one.high and one.patients == 30 for one in measured.values())
    assert all("widened for refitting" in one.how for one in measured.values())
    assert measured["r2"].high <= 1
    assert measured["mae"].low >= 0
    assert all("widened" not in row.interval.how for row in measure_numbers(_predict(), resamples=50))


def test_a_few_large_errors_do_not_let_the_interval_reach_perfection():
    one = _predict(columns=2, folds=5)
    one.predicted[:3] += 40
    measured = {row.name: row.interval for row in measure_numbers(one, resamples=200)}
    assert measured["r2"].value < -50
    assert measured["r2"].high < 0.99
    assert measured["rmse"].low > 0.1
    assert measured["r2"].low < measured["r2"].value < measured["r2"].high


def test_the_better_model_is_found_and_a_model_does_not_differ_from_itself():
    good, same, poor = _predict(folds=5), _predict(folds=5, model="same"), _predict(folds=5, model="poor", error=1.5)
    rows = {(row.name, row.second): row.difference for row in compare_numbers([good, same, poor], resamples=200)}
    assert set(rows) == {(name, second) for name in COMPARED for second in ("same", "poor")}
    assert rows["r2", "poor"].low > 0
    assert rows["mae", "poor"].high < 0
    assert (rows["r2", "same"].value, rows["r2", "same"].p) == (0, 1)
    shown = {row.name: row.interval.value for row in measure_numbers(good, resamples=20)}
    other = {row.name: row.interval.value for row in measure_numbers(poor, resamples=20)}
    assert rows["mae", "poor"].value == pytest.approx(shown["mae"] - other["mae"])
