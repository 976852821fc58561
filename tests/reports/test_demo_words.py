"""Proves that the demo's page claims no more than its seeds allow."""

from __future__ import annotations

import pytest

from dagman.reports.demo_report import conclude, tabulate_comparisons
from dagman.tasks.seeds import SeedComparison


def _compare(pretrained: tuple[float, ...], fresh: tuple[float, ...], question: str = "organs", **more) -> SeedComparison:
    return SeedComparison(question=question, measure="Dice", pretrained=pretrained, fresh=fresh, **more)


_BETTER = _compare((0.50, 0.61, 0.70), (0.40, 0.50, 0.60), "liver")
_OPEN = _compare((0.50, 0.60, 0.70), (0.50, 0.55, 0.72), "heart")
_WORSE = _compare((0.40, 0.50, 0.61), (0.50, 0.60, 0.70), "spleen")


def test_the_interval_is_students_of_the_paired_differences():
    # Differences 0.10, 0.11, 0.10: mean 0.31 / 3, deviation 0.01 / sqrt(3); t of 2 degrees of freedom at 97.5 % is 4.302653.
    low, high = _BETTER.interval
    half = 4.302653 * (0.01 / 3**0.5) / 3**0.5
    assert (low, high) == (pytest.approx(0.31 / 3 - half), pytest.approx(0.31 / 3 + half))
    assert (_BETTER.outcome, _OPEN.outcome, _WORSE.outcome) == ("better", "open", "worse")


def test_less_is_better_where_it_is_an_error():
    restored = _compare((0.84, 0.85, 0.86), (1.09, 1.10, 1.12), rising=False)
    assert restored.difference < 0
    assert restored.outcome == "better"


def test_one_seed_has_no_spread_and_claims_nothing():
    one = _compare((0.81,), (0.20,), others=(("raw pixels", 0.9),))
    assert tabulate_comparisons([one]) == [["organs", "Dice", "0.810", "0.200", "+0.610", "raw pixels 0.900"]]
    assert conclude([one]) == ("warn", "With a single seed, random variation cannot be estimated, so no difference is claimed.")


@pytest.mark.parametrize(
    ("comparisons", "level", "sentence"),
    [
        ([_BETTER], "ok", "Pretraining improved: liver."),
        ([_OPEN, _OPEN], "warn", "No effect of pretraining was detected: no difference exceeds the variation between 3 seeds."),
        ([_BETTER, _OPEN], "ok", "Pretraining improved: liver; no difference beyond the variation between 3 seeds: heart."),
        (
            [_compare((0.9, 0.8, 0.7), (0.9, 0.7, 0.8), others=(("pixels", 0.95), ("size", 0.1)))],
            "warn",
            "No effect of pretraining was detected: no difference exceeds the variation between 3 seeds; a baseline without a "
            "network (pixels) is better than both: organs.",
        ),
        (
            [_compare((0.84, 0.85, 0.86), (1.09, 1.10, 1.12), "voxels", rising=False, others=(("trivial baseline", 1.0),))],
            "ok",
            "Pretraining improved: voxels.",
        ),
        ([_BETTER, _WORSE], "warn", "Pretraining improved: liver; pretraining harmed: spleen."),
    ],
)
def test_several_seeds_are_described_as_they_fell(comparisons, level, sentence):
    assert conclude(comparisons) == (level, sentence)
    assert "±" in tabulate_comparisons(comparisons)[0][2]
