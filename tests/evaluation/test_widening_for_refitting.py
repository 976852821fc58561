"""Proves that out-of-fold intervals are widened for refitting by the closed form, that p follows, and what noise then gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagman.evaluation.auc import compare_auc, delong_covariance, estimate_auc
from dagman.evaluation.classification_measures import Scored, compare_scores, measure_scores
from dagman.evaluation.outcome_metrics import OutOfFold, compare_outcome, measure_outcome
from dagman.evaluation.splits import plan_splits
from dagman.evaluation.statistics import bootstrap_difference, correct_for_refitting, find_widening, list_divisions

_SAID = "widened for refitting (Nadeau & Bengio)"


def _draw_folds(random: np.random.Generator, items: int, repeats: int, folds: int = 5) -> np.ndarray:
    return np.stack([random.permutation(np.arange(items) % folds) for _ in range(repeats)], axis=1)


def _draw_scored(seed: int, *, items: int = 40, repeats: int = 2, shift: float = 0.5, folds: int = 5, model: str = "m") -> Scored:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(items) % 2)
    logits = random.normal(size=(items, repeats)) + random.normal(size=(items, 1)) + shift * labels[:, None]
    positive = 1 / (1 + np.exp(-logits))
    return Scored(
        model=model,
        method="linear",
        subset="100%",
        names=tuple(map(str, range(items))),
        labels=labels,
        patients=np.arange(items),
        scores=np.stack([1 - positive, positive], axis=2),
        folds=_draw_folds(np.random.default_rng(seed + 1), items, repeats, folds),
    )


def test_the_factor_is_that_of_nadeau_and_bengio():
    assert correct_for_refitting(1, 7) == 1
    assert correct_for_refitting(5, 1) == pytest.approx(2.25)
    for folds, repeats in ((2, 1), (5, 5), (10, 10)):
        # (1 / (k r) + n_test / n_train) s^2 over s^2 / k.
        assert correct_for_refitting(folds, repeats) == pytest.approx((1 / (folds * repeats) + 1 / (folds - 1)) * folds)


def test_a_division_is_the_same_folds_whatever_the_draw():
    folds = np.array([[0, 0, 1], [0, 0, 0], [1, 1, 2], [1, 1, -1]])
    assert [(count, columns.tolist()) for count, columns in list_divisions(folds)] == [(2, [0, 1]), (3, [2])]


def test_an_auc_out_of_fold_has_delongs_mean_variance_of_a_repeat_times_the_factor():
    scored = _draw_scored(0, repeats=3)
    scores = scored.scores[:, :, 1]
    found = estimate_auc(scored.labels, scores, folds=scored.folds)
    single = [
        delong_covariance(scored.labels, scores[:, [column], None], folds=scored.folds[:, [column]])[1][0, 0] for column in range(3)
    ]
    assert found.high - found.value == pytest.approx(1.959964 * np.sqrt(np.mean(single) * (1 / 3 + 5 / 4)))
    assert found.how == f"DeLong over patients, {_SAID}"
    rows = {row.name: row.interval for row in measure_scores(scored, resamples=50)}
    assert (rows["auc"].low, rows["auc"].high) == pytest.approx((found.low, found.high))


def test_of_a_single_split_nothing_is_widened():
    scored = _draw_scored(1, repeats=3, folds=1)
    other = _draw_scored(2, repeats=3, folds=1, model="n")
    other = Scored(**{**vars(other), "labels": scored.labels})
    whole = Scored(**{**vars(scored), "folds": None})
    assert measure_scores(scored, resamples=60) == measure_scores(whole, resamples=60)
    for row in compare_scores([scored, other], resamples=60):
        assert _SAID not in row.difference.how
    assert find_widening(lambda columns: lambda rows: float(np.mean(rows)), scored.folds, scored.patients) == 1


def test_the_bootstrap_of_one_repeat_is_widened_by_the_square_root_of_the_factor():
    scored = _draw_scored(3, repeats=1, shift=0.0)
    # The same items and scores as a single split: accuracy knows no folds.
    plain = {row.name: row.interval for row in measure_scores(Scored(**{**vars(scored), "folds": None}), resamples=200)}
    wide = {row.name: row.interval for row in measure_scores(scored, resamples=200)}
    for name in ("accuracy", "balanced_accuracy", "sensitivity", "brier"):
        assert wide[name].value - wide[name].low == pytest.approx(1.5 * (plain[name].value - plain[name].low))
        assert wide[name].how == f"{plain[name].how}, {_SAID}"


def test_what_repeats_average_out_is_put_back():
    random = np.random.default_rng(4)
    patients, folds = np.arange(30), _draw_folds(random, 30, 4)
    values = random.normal(size=(30, 4))

    def prepare(columns: np.ndarray):
        return lambda rows: float(values[rows][:, columns].mean())

    single, together = values.var(axis=0).mean(), values.mean(axis=1).var()
    assert find_widening(prepare, folds, patients) == pytest.approx(np.sqrt((1 / 4 + 5 / 4) * single / together))


@given(st.integers(0, 10_000), st.floats(0.0, 1.5), st.integers(1, 3), st.sampled_from([1, 3]))
@settings(max_examples=10, deadline=None)
def test_a_difference_excludes_0_just_where_p_is_below_the_level_and_bounds_stay_within_0_and_1(seed, shift, repeats, folds):
    first = _draw_scored(seed, items=24, repeats=repeats, shift=3 * shift, folds=folds)
    second = _draw_scored(seed + 7, items=24, repeats=repeats, shift=0.0, folds=folds, model="n")
    second = Scored(**{**vars(second), "labels": first.labels, "folds": first.folds})
    for row in compare_scores([first, second], resamples=80):
        found = row.difference
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    for row in measure_scores(first, resamples=80):
        known = np.array([row.interval.low, row.interval.high])
        assert np.all(np.isnan(known) | ((known >= 0) & (known <= 1)))


@given(st.integers(0, 10_000), st.floats(0.0, 1.5), st.floats(1.0, 3.0))
@settings(max_examples=30, deadline=None)
def test_p_is_that_of_the_widened_interval(seed, shift, widening):
    random = np.random.default_rng(seed)
    first, second = np.round(random.exponential(size=14) + shift, 1), np.round(random.exponential(size=14), 1)

    def average(labels: np.ndarray, values: np.ndarray) -> float:
        return float(np.mean(values))

    plain = bootstrap_difference(average, first, first, second, patients=np.arange(14), draws=200, seed=seed)
    found = bootstrap_difference(average, first, first, second, patients=np.arange(14), draws=200, seed=seed, widening=widening)
    assert found.high - found.value == pytest.approx(widening * (plain.high - plain.value))
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_a_concordance_out_of_fold_is_widened_too():
    random = np.random.default_rng(5)
    time, event = random.exponential(size=40), random.random(40) < 0.7

    def predict(repeats: int, folds: int, signal: float) -> OutOfFold:
        risk = random.normal(size=(40, repeats)) - signal * time[:, None]
        return OutOfFold(
            patients=np.arange(40),
            time=time,
            event=event,
            fold=_draw_folds(np.random.default_rng(6), 40, repeats, folds),
            risk=risk,
            high=risk > 0,
            uncensored=np.ones((40, repeats)),
            times=np.array([0.3, 0.6]),
            survival=np.full((40, repeats, 2), 0.5),
        )

    for name, found in measure_outcome(predict(2, 4, 1.0), draws=60).items():
        assert _SAID in found.how, name
        assert 0 <= found.low <= found.value <= found.high <= 1
    assert all(_SAID not in found.how for found in measure_outcome(predict(1, 1, 1.0), draws=60).values())
    compared = compare_outcome("harrell_c", predict(2, 4, 3.0), predict(2, 4, 0.0), draws=100)
    assert compared.how.endswith(_SAID)
    assert (compared.p < 0.05) == (compared.low > 0 or compared.high < 0)


def test_noise_is_called_better_than_chance_as_rarely_as_an_interval_promises():
    covered, above, plain = [], [], []
    for seed in range(120):
        random = np.random.default_rng(seed)
        labels = random.permutation(np.arange(43) % 3 == 0).astype(int)
        features, patients = random.normal(size=(43, 10)), np.arange(43)
        scores, folds = np.zeros((43, 2)), np.zeros((43, 2), dtype=int)
        for split in plan_splits(patients, labels, repeats=2, seed=seed):
            # Ridge regression: as good as a logistic one here, and at once.
            known = features[split.train]
            weights = np.linalg.solve(known.T @ known + np.eye(10), known.T @ (labels[split.train] - labels[split.train].mean()))
            scores[split.test, split.repeat] = features[split.test] @ weights
            folds[split.test, split.repeat] = split.fold
        found = estimate_auc(labels, scores, folds=folds)
        covered.append(found.low <= 0.5 <= found.high)
        above.append(found.low > 0.5)
        areas, covariance, _ = delong_covariance(labels, scores[..., None], folds=folds)
        plain.append(abs(areas[0] - 0.5) <= 1.96 * np.sqrt(covariance[0, 0]))
    # Were it 95 %, fewer than 0.90 of 120 would come once in about 70 times; with the models taken as given 0.8 to 0.9 are usual.
    assert np.mean(covered) >= 0.9 > np.mean(plain)
    assert np.mean(above) <= 0.06


def test_too_few_patients_have_no_interval_of_the_auc_and_no_p():
    labels, scores = np.arange(40) % 2, np.linspace(0, 1, 40)
    patients = np.arange(40) // 10
    assert np.isnan(estimate_auc(labels, scores, patients=patients).low)
    assert np.isnan(compare_auc(labels, scores, 1 - scores, patients=patients).p)
