"""A primary endpoint is named beforehand, tested alone, and the rest is corrected for its own number."""

from __future__ import annotations

import pytest

from dagman.errors import TaskError
from dagman.evaluation.results import Comparison, choose_endpoint, correct_comparisons
from dagman.evaluation.statistics import Difference, correct_holm
from dagman.reports.tasks.differences import judge_differences, tabulate_differences

TABLE = {
    "measures": ["auc", "brier"],
    "models": ["a", "b", "c"],
    "methods": ["linear", "knn"],
    "subsets": ["25%", "100%"],
}


def _compare(second: str, name: str, p: float) -> Comparison:
    difference = Difference(value=0.1, low=0.01, high=0.2, p=p, level=0.95, items=9, patients=9, how="DeLong")
    return Comparison(name=name, first="a", second=second, method="linear", difference=difference)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("second=b", ("auc", "a", "b", "linear", "100%")),
        ("first=b, measure=brier", ("brier", "b", "a", "linear", "100%")),
        ("second=c,method=knn,subset=25%", ("auc", "a", "c", "knn", "25%")),
    ],
)
def test_what_is_left_out_is_the_first_of_each(text, wanted):
    chosen = choose_endpoint(text, **TABLE)
    assert (chosen.measure, chosen.first, chosen.second, chosen.method, chosen.subset) == wanted


def test_without_all_labels_the_most_are_meant():
    assert choose_endpoint("second=b", **{**TABLE, "subsets": ["k=1", "k=8"]}).subset == "k=8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("second=d", "second 'd' is not in this table"),
        ("metric=auc", "unknown key 'metric'"),
        ("second=a", "second 'a' is not in this table"),
        ("b", "unknown key 'b'"),
    ],
)
def test_what_is_not_in_the_table_is_refused_by_name(text, message):
    with pytest.raises(TaskError, match=message):
        choose_endpoint(text, **TABLE)


def test_one_model_has_no_primary_difference():
    with pytest.raises(TaskError, match="two models"):
        choose_endpoint("measure=auc", **{**TABLE, "models": ["a"]})


def test_the_primary_is_tested_alone_and_the_others_are_corrected_for_their_own_number():
    rows = [_compare("b", "auc", 0.03), _compare("b", "brier", 0.04), _compare("c", "auc", 0.02), _compare("c", "brier", 0.5)]
    marked = correct_comparisons(rows, choose_endpoint("second=c", **TABLE))
    assert (marked[0].second, marked[0].name, marked[0].primary) == ("c", "auc", True)
    assert marked[0].corrected == 0.02
    assert [row.corrected for row in marked[1:]] == pytest.approx(correct_holm([0.03, 0.04, 0.5]))
    for none in (None, choose_endpoint("second=c,method=knn", **TABLE)):
        alone = correct_comparisons(rows, none)
        assert [(row.second, row.name, row.primary) for row in alone] == [(row.second, row.name, False) for row in rows]
        assert [row.corrected for row in alone] == pytest.approx(correct_holm([0.03, 0.04, 0.02, 0.5]))


def test_pages_lead_with_the_primary_endpoint():
    rows = [_compare("b", "auc", 0.3), _compare("c", "auc", 0.02)]
    marked = correct_comparisons(rows, choose_endpoint("second=c", **TABLE))
    first, second = judge_differences(marked)
    assert "Primary endpoint" in first.text
    assert "`a` is better" in first.text
    assert "secondary difference is not statistically significant" in second.text
    text, table = tabulate_differences(marked)
    assert "tested alone" in text.text
    assert table.rows[0][6].endswith("(primary)")
