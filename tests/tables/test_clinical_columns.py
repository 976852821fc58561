"""Proves that clinical columns become numbers by what the training patients hold, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from dagman.errors import TaskError
from dagman.tables.clinical import count_missing, fit_clinical, list_categorical, merge_clinical

TRAIN = [
    {"age": 40.0, "grade": "high"},
    {"age": None, "grade": "low"},
    {"age": 50.0, "grade": "high"},
    {"age": 90.0, "grade": None},
]


def test_a_missing_number_is_the_training_median_and_is_marked():
    design = fit_clinical(TRAIN, ["grade"])
    assert design.names == ["age", "age missing", "grade=high", "grade=low", "grade missing"]
    filled = np.array([40, 50, 50, 90.0])
    row = design.encode([{"age": None, "grade": "low"}])[0]
    assert row == pytest.approx([(50 - filled.mean()) / filled.std(), 1, 0, 1, 0])


def test_a_missing_category_is_the_most_frequent_and_a_new_one_is_none():
    encoded = fit_clinical(TRAIN, ["grade"]).encode([{"age": 50.0, "grade": None}, {"age": 50.0, "grade": "middle"}])
    assert encoded[:, 2:].tolist() == [[1, 0, 1], [0, 0, 0]]


def test_a_column_without_gaps_has_no_mark_and_a_constant_one_stays_finite():
    design = fit_clinical([{"age": 5.0}, {"age": 5.0}])
    assert design.names == ["age"]
    assert design.encode([{"age": 5.0}, {"age": 6.0}]).ravel() == pytest.approx([0, 1])


def test_a_column_is_text_if_one_patient_of_the_table_holds_text():
    patients = [{"a": 1.0, "b": None}, {"a": 2.0, "b": "x"}]
    assert list_categorical(patients) == ["b"]
    assert count_missing(patients) == {"a": 0, "b": 1}


def test_numbers_of_a_text_column_are_categories():
    # A grade "2" in one file and 2 in another is one grade.
    design = fit_clinical([{"grade": 2.0}, {"grade": "2"}, {"grade": "IV"}], ["grade"])
    assert design.names == ["grade=2", "grade=IV"]


def test_several_lesions_of_a_patient_give_one_value():
    merged = merge_clinical([{"volume": 1.0, "site": "left"}, {"volume": 3.0, "site": "arm"}, {"volume": None, "site": "arm"}])
    assert merged == {"volume": 2.0, "site": "arm"}


def test_a_column_that_training_does_not_know_is_refused_by_name():
    with pytest.raises(TaskError, match="'age' is empty in all training patients"):
        fit_clinical([{"age": None}, {"age": None}])
