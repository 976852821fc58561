"""Proves intervals and tests against published values, scipy's bootstrap, brute force over pairs, and hand-worked cases."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_curve

from dagman.evaluation.auc import compare_auc, delong_covariance, estimate_auc, trace_roc_band
from dagman.evaluation.classification_metrics import measure_auc
from dagman.evaluation.segmentation_scores import summarize_scores
from dagman.evaluation.statistics import bootstrap_difference, bootstrap_interval, bound_proportion, correct_holm, find_detectable
from dagman.tables.structures import Structure

# Ratings 1 to 5 of 58 normal and 51 abnormal CTs: Hanley and McNeil, Radiology 1982, table 1.
_RATINGS = np.concatenate([np.repeat([1, 2, 3, 4, 5], [33, 6, 6, 11, 2]), np.repeat([1, 2, 3, 4, 5], [3, 2, 2, 11, 33])])
_ABNORMAL = np.repeat([0, 1], [58, 51])


def _cohort(seed: int, items: int = 80, models: int = 2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(items) % 2)
    # Rounded, so that there are ties.
    return labels, np.round(random.normal(size=(items, models)) + labels[:, None], 1)


def test_delong_gives_the_published_interval_of_hanley_and_mcneils_ratings():
    # Area, standard error and interval: Stata's Base Reference Manual, roctab, example 1 (DeLong's variance).
    found = estimate_auc(_ABNORMAL, _RATINGS)
    assert round(found.value, 4) == 0.8932
    assert (round(found.low, 5), round(found.high, 5)) == (0.83295, 0.95339)
    assert (found.items, found.patients, found.how) == (109, 109, "DeLong over patients")


@given(st.integers(0, 1000))
def test_delongs_covariance_is_that_of_all_pairs(seed):
    labels, scores = _cohort(seed, items=30)
    positive, negative = scores[labels == 1], scores[labels == 0]
    # Psi of DeLong et al. 1988, equation 2: positives x negatives x models.
    psi = (positive[:, None] > negative[None]) + 0.5 * (positive[:, None] == negative[None])
    by_positive, by_negative = np.cov(psi.mean(axis=1).T), np.cov(psi.mean(axis=0).T)
    areas, covariance, count = delong_covariance(labels, scores)
    np.testing.assert_allclose(areas, psi.mean(axis=(0, 1)))
    np.testing.assert_allclose(covariance, by_positive / len(positive) + by_negative / len(negative))
    assert count == 30


def test_delongs_test_of_a_hand_worked_case():
    # First: placements of the positives 1, 1, 2/3 and of the negatives 1, 1, 2/3; second: all right.
    labels = [0, 0, 0, 1, 1, 1]
    first, second = [1, 2, 4, 5, 6, 3], [1, 2, 3, 4, 5, 6]
    found = compare_auc(labels, first, second)
    error = np.sqrt(2 * (1 / 27) / 3)
    assert found.value == pytest.approx(-1 / 9)
    assert found.high - found.value == pytest.approx(1.959964 * error)
    assert found.p == pytest.approx(2 * stats.norm.sf(1 / 9 / error))


def test_a_model_does_not_differ_from_itself():
    labels, scores = _cohort(3)
    found = compare_auc(labels, scores[:, 0], 2 * scores[:, 0])
    assert (found.value, found.p) == (0, 1)
    assert np.isnan([found.low, found.high]).all()
    assert found.how == "no interval: both models rank all pairs identically"


def test_items_that_are_repeated_in_a_patient_do_not_count_twice():
    labels, scores = _cohort(4)
    once = estimate_auc(labels, scores[:, 0])
    patients = np.tile(np.arange(80), 3)
    thrice = estimate_auc(np.tile(labels, 3), np.tile(scores[:, 0], 3), patients=patients)
    assert thrice.value == pytest.approx(once.value)
    assert thrice.patients == 80
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_an_interval_over_patients_with_mixed_labels_agrees_with_the_bootstrap():
    random = np.random.default_rng(5)
    patients = np.repeat(np.arange(150), 2)
    labels = random.integers(0, 2, 300)
    scores = labels + random.normal(size=150)[patients] + random.normal(size=300)
    delong = estimate_auc(labels, scores, patients=patients)
    resampled = bootstrap_interval(measure_auc, labels, scores, patients=patients)
    assert (delong.low, delong.high) == pytest.approx((resampled.low, resampled.high), abs=0.012)


def test_bca_is_scipys_on_unclustered_data():
    values = np.random.default_rng(6).exponential(size=60)
    seen = []

    def square_mean(x: np.ndarray) -> float:
        seen.append(float(np.mean(x) ** 2))
        return seen[-1]

    found = bootstrap_interval(square_mean, values, patients=np.arange(60), draws=999)
    # The first call is the estimate, the next are the resamples: scipy bounds the very same ones.
    resampled = SimpleNamespace(bootstrap_distribution=np.array(seen[1:1000]))
    wanted = stats.bootstrap((values,), lambda x, axis: np.mean(x, axis=axis) ** 2, n_resamples=0, bootstrap_result=resampled)
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval))
    assert found.how == "BCa bootstrap over patients, 999 resamples"


def test_an_interval_over_patients_is_wider_than_one_over_their_items():
    random = np.random.default_rng(8)
    patients = np.repeat(np.arange(20), 5)
    values = random.normal(size=20)[patients]
    wide = bootstrap_interval(np.mean, values, patients=patients)
    narrow = bootstrap_interval(np.mean, values, patients=np.arange(100))
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)
    assert (wide.items, wide.patients, narrow.patients) == (100, 20, 100)


def test_the_order_of_rows_changes_no_interval():
    labels, scores = _cohort(9)
    patients = np.arange(80) // 2
    order = np.random.default_rng(0).permutation(80)
    first = bootstrap_interval(measure_auc, labels, scores[:, 0], patients=patients, draws=200)
    assert bootstrap_interval(measure_auc, labels[order], scores[order, 0], patients=patients[order], draws=200) == first


def test_resamples_of_one_class_are_skipped_and_counted():
    found = bootstrap_interval(measure_auc, [0, 0, 1, 1, 0], [1, 3, 2, 4, 0], patients=range(5), draws=500)
    assert found.low < found.value == pytest.approx(5 / 6)
    assert "500 resamples, " in found.how
    assert found.how.endswith(" undefined ones skipped")


def test_resamples_without_spread_give_no_interval():
    found = bootstrap_interval(
        lambda labels, guesses: float(np.mean(labels == guesses)), [0, 1, 1, 0, 1], [0, 1, 1, 0, 1], patients=range(5), draws=100
    )
    assert found.value == 1
    assert np.isnan([found.low, found.high]).all()
    assert found.how == "no interval: every bootstrap resample of these 5 patients gives the same value"


def test_a_few_patients_have_a_value_but_no_interval_and_no_p():
    # Two patients have three resamples: bounds of them are an artefact, whatever the number of items.
    labels, scores = np.arange(40) % 2, np.linspace(0, 1, 40)
    found = bootstrap_interval(measure_auc, labels, scores, patients=np.arange(40) // 10, draws=50)
    assert found.value == pytest.approx(measure_auc(labels, scores))
    assert np.isnan([found.low, found.high]).all()
    assert found.how == "no interval: too few patients to resample (4)"
    assert np.isnan(bootstrap_difference(measure_auc, labels, scores, 1 - scores, patients=np.arange(40) // 10, draws=50).p)


@pytest.mark.parametrize("labels", [[0] * 5, [1] * 6])
def test_an_undefined_metric_has_no_interval(labels):
    found = bootstrap_interval(measure_auc, labels, labels, patients=range(len(labels)), draws=20)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert found.how == "undefined on these patients"
    assert np.isnan([estimate_auc(labels, labels).low, compare_auc(labels, labels, labels).p]).all()


def test_a_paired_difference_is_surer_than_two_intervals():
    random = np.random.default_rng(10)
    labels, scores = _cohort(10, items=100, models=1)
    first = scores[:, 0]
    second = first + 0.3 * random.normal(size=100) - 0.3 * labels
    patients = np.arange(100)
    paired = bootstrap_difference(measure_auc, labels, first, second, patients=patients)
    alone = bootstrap_interval(measure_auc, labels, first, patients=patients)
    delong = compare_auc(labels, first, second)
    assert paired.value == pytest.approx(measure_auc(labels, first) - measure_auc(labels, second))
    assert paired.high - paired.low < alone.high - alone.low
    assert (paired.low, paired.high, paired.p) == pytest.approx((delong.low, delong.high, delong.p), abs=0.02)
    assert paired.how == "paired BCa bootstrap over patients, 2000 resamples"


def test_equal_models_are_not_told_apart_by_the_bootstrap():
    labels, scores = _cohort(11)
    found = bootstrap_difference(measure_auc, labels, scores[:, 0], scores[:, 0], patients=np.arange(80), draws=50)
    assert (found.value, found.p) == (0, 1)
    assert np.isnan([found.low, found.high]).all()


@given(st.integers(0, 10_000), st.floats(0.0, 1.2))
@settings(max_examples=60, deadline=None)
def test_an_interval_leaves_out_0_just_where_p_is_below_its_level(seed, shift):
    random = np.random.default_rng(seed)
    # Skewed, and rounded so that resamples of exactly 0 occur.
    first = np.round(random.exponential(size=14) + shift, 1)
    second = np.round(random.exponential(size=14), 1)

    def average(labels: np.ndarray, values: np.ndarray) -> float:
        return float(np.mean(values))

    for level in (0.8, 0.95):
        found = bootstrap_difference(average, first, first, second, patients=np.arange(14), draws=300, level=level, seed=seed)
        assert (found.p < 1 - level) == (found.low > 0 or found.high < 0)


def test_the_detectable_difference_of_a_normal_interval():
    labels, scores = _cohort(12)
    found = compare_auc(labels, scores[:, 0], scores[:, 1])
    error = (found.high - found.value) / 1.959964
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)
    # A difference of this size is found in 4 of 5 repetitions.
    assert stats.norm.sf(1.959964 - found.detectable / error) == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize(("freedom", "power"), [(1, 0.73), (2, 0.77), (4, 0.79), (50, 0.80)])
def test_the_detectable_difference_of_a_t_interval_has_the_power_of_the_t_test(freedom, power):
    critical = stats.t.ppf(0.975, freedom)
    found = find_detectable(critical, freedom=freedom)  # half of an interval whose standard error is 1
    assert stats.nct.sf(critical, freedom, found) == pytest.approx(power, abs=0.005)


@pytest.mark.parametrize(("right", "count"), [(12, 12), (0, 12), (3, 10), (1, 1)])
def test_exact_bounds_of_a_proportion_are_scipys(right, count):
    wanted = stats.binomtest(right, count).proportion_ci(0.95, method="exact")
    assert bound_proportion(right, count) == pytest.approx((wanted.low, wanted.high))


def test_holms_correction_of_a_hand_worked_case():
    # 4 x 0.01; 3 x 0.02 ; then 2 x 0.03 = 0.06, 1 x 0.04 cannot fall below it.
    assert correct_holm([0.02, 0.01, 0.04, 0.03]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    corrected = correct_holm([0.5, float("nan"), 0.9])
    assert corrected[0] == 1.0
    assert np.isnan(corrected[1])
    assert correct_holm([]) == []


def test_the_roc_band_holds_the_curve_and_the_curve_is_scikit_learns():
    labels, scores = _cohort(13)
    band = trace_roc_band(labels, scores[:, 0], patients=np.arange(80), draws=200)
    false_rate, true_rate, _ = roc_curve(labels, scores[:, 0], drop_intermediate=False)
    np.testing.assert_allclose(band.true_positive_rate, np.interp(band.false_positive_rate, false_rate, true_rate))
    assert np.all(band.low <= band.true_positive_rate)
    assert np.all(band.true_positive_rate <= band.high)
    assert band.true_positive_rate[-1] == 1


def test_all_lesions_found_has_an_exact_interval_over_the_patients_who_have_any():
    rows = [
        {
            "item": f"s{i}", "patient": f"p{i}", "label": "tumour", "model": "m", "subset": "100%", "dice": 0.5, "nsd": 0.5,
            "hd95_mm": 1.0, "lesions": int(i < 12), "found": int(i < 12), "false_positives": 0, "volume_ml": 1.0,
            "true_volume_ml": float(i < 12),
        }
        for i in range(14)
    ]  # fmt: skip
    measured = summarize_scores(pd.DataFrame(rows), [Structure(name="tumour", values=(1,))], resamples=50)
    (found,) = [row.interval for row in measured if row.name == "lesion_sensitivity"]
    assert (found.value, found.low, found.high) == (1.0, pytest.approx(0.025 ** (1 / 12)), 1.0)
    assert found.how == "exact (Clopper-Pearson) over 12 patients"


def test_a_value_that_nearly_all_resamples_exceed_has_no_interval():
    # The least an agreement can be: its quantiles, 0.05 to 0.4 here, would leave the value itself out.
    numbers = np.linspace(-1.0, 1.0, 40)
    interval = bootstrap_interval(lambda values: abs(float(values.mean())), numbers, patients=np.arange(40), draws=400)
    assert interval.value == pytest.approx(0.0, abs=1e-9)
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.how == "no interval: 100% of the resamples of these 40 patients lie above the value"
