"""Proves that no part of a model of time and event sees who it is tested on, and that what is there is found, and else nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dagman.encoder.loading import load_encoder
from dagman.errors import TableError, TaskError
from dagman.evaluation.outcome_metrics import OutOfFold, prepare_measure
from dagman.evaluation.splits import Split, Subset, plan_splits
from dagman.store.crops import CropSpec
from dagman.tables.items import Item
from dagman.tables.patients import PooledPatients, pool_patients
from dagman.tasks.finetuning import FinetuneSettings, pool_crops
from dagman.tasks.inputs.item_crops import ItemCrop
from dagman.tasks.outcome.folds import (
    Arm,
    fit_frozen,
    predict_out_of_fold,
    predict_without_features,
    refuse_incomparable,
    stratify_patients,
    tune_risk,
)
from dagman.tasks.outcome.model import OutcomeModel, load_outcome_model, save_outcome_model
from dagman.tasks.outcome.time_to_event import OutcomeSettings

TIMES = np.array([3.0, 6.0, 12.0])


def _cohort(seed: int = 0, count: int = 60, lesions: int = 1) -> tuple[PooledPatients, np.ndarray]:
    """Patients whose first feature, and age, decide; a fifth of the ages is missing."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, 30))
    lived, followed = 12 * random.exponential(np.exp(-1.5 * features[:, 0])), random.uniform(1, 40, count)
    ages = [None if random.random() < 0.2 else float(60 + 8 * features[i, 0]) for i in range(count)]
    items = [
        Item(
            index=0,
            name=f"p{i:02d}-{lesion}",
            scan="scan",
            patient=f"p{i:02d}",
            time=float(min(lived[i], followed[i])),
            event=bool(lived[i] <= followed[i]),
            clinical={"age": ages[i], "grade": "high" if features[i, 1] > 0 else "low"},
        )
        for i in range(count)
        for lesion in range(lesions)
    ]
    return pool_patients(items), features


def _plan(patients: PooledPatients, folds: int = 4, repeats: int = 1, seed: int = 0) -> list[Split]:
    return plan_splits(patients.names, stratify_patients(patients, folds), folds=folds, repeats=repeats, seed=seed)


def _measure(found: OutOfFold) -> float:
    return prepare_measure("harrell_c", found)(np.arange(len(found.time)))


@pytest.mark.parametrize("method", ["cox", "forest"])
def test_what_decides_is_found_out_of_fold(method):
    patients, features = _cohort()
    arm = Arm(name="image", features=features[:, :6])
    assert _measure(predict_out_of_fold(arm, method, patients, _plan(patients, folds=3), TIMES)) > 0.65


def test_clinical_columns_alone_and_both_are_found_too():
    patients, features = _cohort()
    arms = [Arm(name="clinical", clinical=True), Arm(name="both", features=features, clinical=True)]
    assert min(_measure(predict_out_of_fold(arm, "cox", patients, _plan(patients), TIMES)) for arm in arms) > 0.65


def test_permuted_outcomes_give_chance():
    patients, features = _cohort(count=80)
    found = []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(patients))
        items = tuple(
            replace(item, time=patients.items[other].time, event=patients.items[other].event)
            for item, other in zip(patients.items, order, strict=True)
        )
        permuted = PooledPatients(**{**vars(patients), "items": items})
        arm = Arm(name="both", features=features, clinical=True)
        found.append(_measure(predict_out_of_fold(arm, "cox", permuted, _plan(permuted, seed=seed), TIMES, seed=seed)))
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_cut_fills_scales_and_baseline_never_look_at_test_rows():
    patients, features = _cohort()
    split = _plan(patients)[0]
    arm = Arm(name="both", features=features, clinical=True)
    before = predict_out_of_fold(arm, "cox", patients, [split], TIMES)
    # Everything about all tested patients but one becomes absurd: the one that is left must not notice.
    kept, *others = split.test
    strange = features.copy()
    strange[others] = 1e3
    clinical = list(patients.clinical)
    items = list(patients.items)
    for row in others:
        clinical[row] = {"age": 1e6, "grade": "never seen"}
        items[row] = replace(items[row], time=1e-3, event=True)
    changed = PooledPatients(**{**vars(patients), "items": tuple(items), "clinical": tuple(clinical)})
    after = predict_out_of_fold(replace(arm, features=strange), "cox", changed, [split], TIMES)
    place = list(before.patients).index(patients.names[kept])
    assert after.risk[place] == pytest.approx(before.risk[place])
    assert after.high[place] == before.high[place]
    assert after.survival[place] == pytest.approx(before.survival[place])


def test_the_cut_is_the_median_of_the_training_risks():
    patients, features = _cohort()
    arm, splits = Arm(name="image", features=features), _plan(patients)
    found = predict_out_of_fold(arm, "cox", patients, splits, TIMES)
    # The median of the training risks halves the tested ones too, and one cut holds within a fold.
    assert 0.3 < found.high.mean() < 0.7
    for split in splits:
        low, high = (found.risk[split.test, 0][found.high[split.test, 0] == group] for group in (False, True))
        assert low.max() <= high.min()


def test_a_given_split_tests_its_patients_alone_and_a_small_share_trains_on_few():
    patients, features = _cohort(count=40)
    given = Split(repeat=0, fold=0, train=np.arange(0, 30), test=np.arange(30, 40))
    arm = Arm(name="image", features=features[:, :3])
    found = predict_out_of_fold(arm, "cox", patients, [given], TIMES, subset=Subset(name="50%", share=0.5, draws=2))
    assert found.patients.tolist() == list(patients.names[30:])
    assert found.risk.shape == (10, 2)
    assert not np.array_equal(found.risk[:, 0], found.risk[:, 1])


def test_without_features_everyone_has_the_training_curve():
    patients, _ = _cohort()
    found = predict_without_features(patients, _plan(patients), TIMES)
    assert not found.risk.any()
    assert (np.diff(found.survival[:, 0], axis=1) <= 0).all()
    assert len(np.unique(found.survival[:, 0], axis=0)) == 4


def test_lesions_of_one_patient_are_averaged_and_the_highest_risk_counts():
    patients, _ = _cohort(count=3, lesions=2)
    values = np.array([[1, 0], [3, 4], [0, 0], [0, 2], [5, 5], [5, 5.0]])
    assert patients.average(values).tolist() == [[2, 2], [0, 1], [5, 5]]
    assert patients.take_highest(values[:, 1]).tolist() == [4, 2, 5]
    assert patients.list_members([2, 0]).tolist() == [4, 5, 0, 1]


def test_a_patient_with_two_outcomes_is_named():
    patients, _ = _cohort(count=2)
    first = patients.items[0]
    with pytest.raises(TableError, match=r"differ in their event: p00"):
        pool_patients([first, replace(first, event=not first.event)])


def test_too_few_events_are_refused_with_what_to_do():
    patients, _ = _cohort(count=12)
    items = tuple(replace(item, event=i < 3) for i, item in enumerate(patients.items))
    few = PooledPatients(**{**vars(patients), "items": items})
    with pytest.raises(TaskError, match=r"3 patients had the event, fewer than 5 folds. Use --folds 3"):
        stratify_patients(few, 5)
    arm = Arm(name="clinical", clinical=True)
    one = Split(repeat=0, fold=0, train=np.arange(2, 12), test=np.arange(2))
    with pytest.raises(TaskError, match="a training set of 10 patients has 1 event\\."):
        predict_out_of_fold(arm, "cox", few, [one], TIMES)


@pytest.mark.parametrize(
    ("times", "events", "said"),
    [
        (
            [7, 7, 7, 7],
            [1, 1, 1, 1],
            r"^all tested times are equal \(7\): no two patients can be compared\. Check the column of times",
        ),
        ([5, 9, 6, 9], [0, 1, 0, 1], "^no test fold has an event before another patient's time: no two patients can be compared"),
    ],
)
def test_patients_of_whom_no_two_can_be_compared_are_refused(times, events, said):
    patients, _ = _cohort(count=4)
    items = [replace(item, time=float(t), event=bool(e)) for item, t, e in zip(patients.items, times, events, strict=True)]
    folds = [
        Split(repeat=0, fold=0, train=np.array([2, 3]), test=np.array([0, 1])),
        Split(repeat=0, fold=1, train=np.array([0, 1]), test=np.array([2, 3])),
    ]
    with pytest.raises(TaskError, match=said):
        refuse_incomparable(PooledPatients(**{**vars(patients), "items": tuple(items)}), folds)
    # One event that comes before another patient's time is enough.
    items[0] = replace(items[0], time=1.0, event=True)
    refuse_incomparable(PooledPatients(**{**vars(patients), "items": tuple(items)}), folds)


def test_a_method_there_is_not_names_the_nearest():
    with pytest.raises(TaskError, match=r"unknown method 'forst'\. Nearest: forest"):
        OutcomeSettings(methods=("forst",))


def test_a_kept_model_predicts_as_before_it_was_written(tmp_path: Path):
    patients, _ = _cohort()
    arm = Arm(name="clinical", clinical=True)
    design, cox = fit_frozen(arm, "cox", patients, np.arange(len(patients)), 0)
    model = OutcomeModel(source="pixels", design=design, cox=cox, cut=0.1, times=TIMES, crop=CropSpec(spacing=1.5))
    save_outcome_model(model, tmp_path / "model")
    read = load_outcome_model(tmp_path / "model")
    assert read.predict(patients.items) == model.predict(patients.items)
    assert read.clinical == ("age", "grade")
    row = read.predict(patients.items)[0]
    assert set(row) == {"patient", "risk", "group", "survival_3", "survival_6", "survival_12"}
    assert row["group"] == ("high risk" if row["risk"] > 0.1 else "low risk")
    with pytest.raises(TaskError, match=r"needs the clinical columns 'age', 'grade'\. Give a table with a column scan"):
        read.predict([replace(patients.items[0], clinical={})])
    (tmp_path / "model" / "outcome.json").write_text("{")
    with pytest.raises(TaskError, match="is damaged"):
        load_outcome_model(tmp_path / "model")


@pytest.mark.slow
def test_fine_tuning_with_coxs_loss_keeps_what_brightness_decides():
    random = np.random.default_rng(0)
    patients, _ = _cohort(count=12)
    # The brighter, the earlier.
    items = tuple(replace(item, time=float(20 - i), event=True) for i, item in enumerate(patients.items))
    decided = PooledPatients(**{**vars(patients), "items": items})
    inside = np.zeros((32, 32, 32), dtype=bool)
    inside[8:24, 8:24, 8:24] = True
    crops = tuple(
        ItemCrop(
            voxels=(level * inside + random.normal(0, 20, inside.shape)).astype(np.int16), inside=inside, modality="CT", spacing=1.0
        )
        for level in np.linspace(-200, 200, 12)
    )
    encoder = load_encoder("scratch:tiny", device="cpu")
    arm = Arm(name="image", features=pool_crops(encoder, crops), encoder=encoder, crops=crops)
    train, test = np.arange(0, 12, 2), np.arange(1, 12, 2)
    settings = FinetuneSettings(epochs=2)
    found = predict_out_of_fold(
        arm, "finetune", decided, [Split(repeat=0, fold=0, train=train, test=test)], TIMES, finetuning=settings
    )
    assert _measure(found) > 0.8
    tuned = tune_risk(replace(arm, features=None), decided, train, replace(settings, rate=1e-3, batch=3), 0).tuned
    # From a head of zeros, whose loss is that of a guess: the mean of ln k over the events.
    assert tuned.history[-1]["train"] < np.mean(np.log(np.arange(1, 4)))
    assert not replace(arm, clinical=True).can("finetune")
