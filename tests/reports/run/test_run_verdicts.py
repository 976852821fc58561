"""Proves that a page shows a run's light with what to try, and the hints and the uniformity that its pictures name."""

from __future__ import annotations

import numpy as np
import pytest

from dagman.reports.run.pictures import find_hints, measure_uniformity
from dagman.reports.run.verdicts import show_verdicts, state_progress, summarize_verdicts
from dagman.training.monitoring.verdicts import Verdict


def test_the_gravest_verdict_comes_first_with_what_to_try():
    judged = [Verdict(light="green", text="**A** is well."), Verdict(light="red", text="**B** is not.", remedy="Mend `b`.")]
    shown = show_verdicts(judged)
    assert [block.level for block in shown] == ["bad", "ok"]
    assert shown[0].text == "**B** is not. **What to try:** Mend `b`."
    assert summarize_verdicts(judged).text.startswith("Red. ")


def test_an_unfinished_run_says_how_far_it_came():
    assert "Complete" in state_progress(300, 300)
    assert "299 of 300" in state_progress(299, 300)


def test_hints_are_the_most_attended_of_the_visible_units():
    attention = np.arange(10) / 45
    hidden = np.zeros(10, bool)
    hidden[[3, 4, 5, 6, 7, 8]] = True  # floor(0.7 * 10) = 7 most attended are 3..9; one hint, the top one, is given back
    assert np.flatnonzero(find_hints(hidden, attention, 0.1)).tolist() == [9]
    assert not find_hints(hidden, attention, 0.0).any()
    assert not find_hints(np.ones(10, bool), attention, 0.1).any()


def test_uniformity_is_one_for_uniform_attention_and_nothing_for_a_single_unit():
    assert measure_uniformity(np.full((2, 8), 0.1)) == pytest.approx(1.0)
    assert measure_uniformity(np.eye(8)[:2]) == pytest.approx(0.0)
