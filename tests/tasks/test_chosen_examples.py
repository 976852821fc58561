"""Proves which items the report shows: certain and uncertain, right and wrong, none of them twice."""

from __future__ import annotations

import numpy as np

from dagman.tasks.inputs.examples import choose_examples, read_examples


def test_the_most_and_least_certain_are_chosen_right_and_wrong():
    labels = np.array([0, 0, 0, 1, 1, 1])
    positive = np.array([0.01, 0.3, 0.8, 0.9, 0.55, 0.45])
    chosen = choose_examples(labels, np.stack([1 - positive, positive], axis=1), each=1)
    assert chosen == [
        (0, "most certain, right"),
        (2, "most certain, wrong"),
        (4, "least certain, right"),
        (5, "least certain, wrong"),
    ]


def test_few_items_are_shown_once():
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])
    chosen = choose_examples(np.array([0, 1]), scores)
    assert sorted(place for place, _ in chosen) == [0, 1]
    assert {kind for _, kind in chosen} == {"most certain, right"}


def test_a_folder_without_examples_has_none(tmp_path):
    assert read_examples(tmp_path) == ("", [])
