"""Proves that no patient is on both sides of a split, that few-shot draws are nested, and that row order changes neither."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagman.errors import TaskError
from dagman.evaluation.splits import draw_subset, find_largest_count, name_overlap, plan_splits, read_splits, write_splits

_SEEDS = st.integers(0, 2**31)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Patients and labels of items, and a number of folds that every class can fill."""
    folds = draw(st.integers(2, 5))
    random = np.random.default_rng(draw(_SEEDS))
    classes = draw(st.integers(1, 4))
    # `folds` patients of each class with one item, then others with any number of items of any class.
    patients = [f"p{code}-{i}" for code in range(classes) for i in range(folds)]
    labels = [code for code in range(classes) for _ in range(folds)]
    for i in range(draw(st.integers(0, 30))):
        for _ in range(int(random.integers(1, 5))):
            patients.append(f"q{i}")
            labels.append(int(random.integers(classes)))
    return np.array(patients), np.array(labels), folds


@given(cohorts(), _SEEDS)
def test_a_patient_never_crosses_folds(cohort, seed):
    patients, labels, folds = cohort
    splits = plan_splits(patients, labels, folds=folds, repeats=2, seed=seed)
    assert len(splits) == 2 * folds
    for split in splits:
        assert not set(patients[split.train]) & set(patients[split.test])
        assert sorted([*split.train, *split.test]) == list(range(len(patients)))
    for repeat in range(2):
        tested = np.concatenate([split.test for split in splits if split.repeat == repeat])
        assert sorted(tested) == list(range(len(patients)))


@given(st.integers(2, 5), st.lists(st.integers(0, 2), min_size=0, max_size=60), _SEEDS)
def test_every_class_is_in_every_fold_and_folds_are_alike(folds, extra, seed):
    labels = np.array([code for code in range(3) for _ in range(folds)] + extra)
    patients = np.arange(len(labels))
    for code in range(3):
        counts = [np.sum(labels[split.test] == code) for split in plan_splits(patients, labels, folds=folds, seed=seed)]
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1


@given(cohorts(), _SEEDS)
def test_the_order_of_rows_changes_no_split_and_no_subset(cohort, seed):
    patients, labels, folds = cohort
    order = np.random.default_rng(seed).permutation(len(patients))
    first = plan_splits(patients, labels, folds=folds, seed=seed)
    second = plan_splits(patients[order], labels[order], folds=folds, seed=seed)
    for one, other in zip(first, second, strict=True):
        assert sorted(one.test) == sorted(order[other.test])
        drawn = draw_subset(one, labels, patients, share=0.5, seed=seed)
        assert sorted(drawn) == sorted(order[draw_subset(other, labels[order], patients[order], share=0.5, seed=seed)])


@given(cohorts(), _SEEDS)
def test_a_larger_draw_contains_the_smaller(cohort, seed):
    patients, labels, folds = cohort
    (split, *_) = splits = plan_splits(patients, labels, folds=folds, seed=seed)
    most = find_largest_count(splits, labels, patients)
    by_count = [set(draw_subset(split, labels, patients, per_class=k, seed=seed)) for k in range(1, most + 1)]
    by_share = [set(draw_subset(split, labels, patients, share=share, seed=seed)) for share in (0.1, 0.25, 0.5, 1.0)]
    for draws in (by_count, by_share):
        for smaller, larger in itertools.pairwise(draws):
            assert smaller <= larger
        assert set(labels[list(draws[0])]) == set(labels[split.train])
    assert by_share[-1] == set(split.train)


def test_a_draw_takes_whole_patients_and_as_many_as_asked():
    patients, labels = np.repeat(np.arange(40), 2), np.repeat(np.arange(40) % 2, 2)
    split = plan_splits(patients, labels, folds=4)[0]
    drawn = draw_subset(split, labels, patients, per_class=5)
    assert len(drawn) == 20
    assert [len(set(patients[drawn][labels[drawn] == code])) for code in (0, 1)] == [5, 5]
    quarter = draw_subset(split, labels, patients, share=0.25)
    assert len(set(patients[quarter])) == 8
    assert set(quarter) != set(draw_subset(split, labels, patients, share=0.25, draw=1))


def test_repeats_and_seeds_give_other_folds():
    patients, labels = np.arange(50), np.arange(50) % 2
    one, two = plan_splits(patients, labels, repeats=2)[::5]
    assert set(one.test) != set(two.test)
    assert set(one.test) != set(plan_splits(patients, labels, seed=1)[0].test)


def test_a_given_split_is_used_as_it_is():
    given_split = ["train", "test", "train", "val", "test", "train"]
    (split,) = plan_splits(list("abcdef"), [0, 0, 1, 0, 1, 0], given=given_split)
    assert [split.train.tolist(), split.val.tolist(), split.test.tolist()] == [[0, 2, 5], [3], [1, 4]]


def test_splits_survive_their_file(tmp_path):
    patients, labels = np.arange(12) // 2, np.arange(12) // 2 % 2
    names = [f"item {i}" for i in range(12)]
    splits = plan_splits(patients, labels, folds=3, repeats=2)
    write_splits(tmp_path / "splits.csv", splits, names, patients)
    for wrote, read in zip(splits, read_splits(tmp_path / "splits.csv", names), strict=True):
        assert (read.repeat, read.fold) == (wrote.repeat, wrote.fold)
        assert np.array_equal(read.train, wrote.train)
        assert np.array_equal(read.test, wrote.test)
    with pytest.raises(TaskError, match="the splits were made for other items than those of the table"):
        read_splits(tmp_path / "splits.csv", names[1:])


def test_scans_seen_in_pretraining_are_all_named():
    assert name_overlap(["a", "b"], ["1", "2"], {"3"}) is None
    warning = name_overlap(["a", "b", "c"], ["1", "2", "3"], {"3", "1"})
    assert warning == "2 test scans were seen in pretraining (unlabelled), so results may be optimistic: a, c"


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (
            lambda: plan_splits(np.arange(9), [0] * 6 + [1] * 3, classes=["benign", "malignant"]),
            "class 'malignant' has 3 patients, fewer than 5 folds. Use --folds 3.",
        ),
        (
            lambda: plan_splits([1, 2, 3, 3], [0, 0, 1, 1], folds=2),
            "class '1' has 1 patient, fewer than 2 folds. Add patients, or remove this class.",
        ),
        (lambda: plan_splits(np.arange(4)), "the table has 4 patients, fewer than 5 folds. Use --folds 4."),
        (lambda: plan_splits([]), "there are no items to split. Give a table with rows."),
        (lambda: plan_splits(np.arange(9), folds=1), "1 fold cannot be tested. Use 2 folds or more."),
        (lambda: plan_splits(np.arange(9), repeats=0), "0 repeats were requested. Use 1 or more."),
        (
            lambda: plan_splits([1, 2], [0, 1], given=["train", "val"]),
            "no item of the given split is 'test'. Mark some as test, or omit the split column.",
        ),
        (
            lambda: plan_splits([1, 2], [0, 1], given=["train", "test"]),
            "class '1' is in the test set but not in the training set. Mark some of its items as train.",
        ),
    ],
)
def test_splits_that_cannot_be_are_refused_in_one_line(ask, says):
    with pytest.raises(TaskError) as caught:
        ask()
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"per_class": 9}, "class '0' has 8 training patients in repeat 0, fold 0. 9 per class were requested: use at most 8."),
        ({"per_class": 0}, "0 patients per class were requested. Use 1 or more."),
        ({"share": 1.5}, "a share of 1.5 was requested. Give more than 0, at most 1."),
        ({}, "a subset is a share or a count of patients. Give either share or per_class."),
    ],
)
def test_subsets_that_cannot_be_are_refused_in_one_line(wanted, says):
    patients, labels = np.arange(20), np.arange(20) % 2
    with pytest.raises(TaskError) as caught:
        draw_subset(plan_splits(patients, labels)[0], labels, patients, **wanted)
    assert str(caught.value) == says
