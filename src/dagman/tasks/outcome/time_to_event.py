"""`dagman outcome`: predict survival from images, clinical columns, and both, with the statistics that a publication needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman.errors import TaskError
from dagman.evaluation.outcome_metrics import (
    OutOfFold,
    compare_outcome,
    count_comparable,
    describe_auc,
    describe_calibration,
    describe_groups,
    explain_undefined,
    list_measures,
    measure_outcome,
)
from dagman.evaluation.results import Comparison, Measurement, Results, Summary, choose_endpoint, correct_comparisons
from dagman.evaluation.splits import Protocol, Split, Subset, find_largest_count, list_subsets, plan_splits, write_splits
from dagman.evaluation.statistics import Interval
from dagman.evaluation.survival import choose_times
from dagman.notes import inform, warn
from dagman.records.counts import count_noun
from dagman.records.names import suggest_name
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.tables.clinical import count_missing
from dagman.tables.patients import PooledPatients, pool_patients
from dagman.tables.table import Table
from dagman.tasks.contract import make_contract
from dagman.tasks.finetuning import FinetuneSettings
from dagman.tasks.head_models import describe_source
from dagman.tasks.inputs.examples import write_examples
from dagman.tasks.inputs.model_inputs import TaskInputs, warn_of_overlap
from dagman.tasks.models import ModelSpec
from dagman.tasks.outcome.cox import CoxModel
from dagman.tasks.outcome.examples import choose_by_risk
from dagman.tasks.outcome.folds import (
    METHODS,
    Arm,
    fit_frozen,
    predict_out_of_fold,
    predict_without_features,
    refuse_incomparable,
    stratify_patients,
)
from dagman.tasks.outcome.model import OutcomeModel, save_outcome_model
from dagman.tasks.pipeline import Evaluation, ItemRun, Notify, run_pipeline

CLINICAL = "clinical"
"""Name of the arm that uses only clinical columns."""
_ALL = "100%"


@dataclass(frozen=True, kw_only=True)
class OutcomeSettings(Protocol):
    """Settings of an outcome prediction and its evaluation."""

    methods: tuple[str, ...] = ("cox",)
    "Some of METHODS; forest and fine-tuning take longer."
    crop: CropSpec = FROM_SIZE
    device: str = "auto"
    precision: str = "fp32"
    finetuning: FinetuneSettings = field(default_factory=FinetuneSettings)

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise TaskError(f"unknown method '{method}'", do=suggest_name(method, METHODS))


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldScores:
    """Out-of-fold predictions of one arm, method and subset."""

    arm: str
    method: str
    subset: str
    out_of_fold: OutOfFold


def predict_outcome(
    models: Sequence[ModelSpec],
    table: Table,
    out: str | Path,
    settings: OutcomeSettings | None = None,
    *,
    store: Store | None = None,
    cache: str | Path | None = None,
    on_part: Callable[[str], None] | None = None,
) -> Results:
    """Predict survival out of fold and write the results folder, except for the report.

    Several models are compared on the same patients, splits and crops. Arguments are those of `classify_items`; the table must have
    been read with `time` and `event`, and may have `clinical` columns.

    Raises:
        TaskError: There are too few patients or events, or no comparable pairs of patients.
    """
    settings, out = settings or OutcomeSettings(), Path(out)
    repeats = settings.count_repeats(trains="finetune" in settings.methods, given=table.splits is not None)
    settings = replace(settings, repeats=repeats)
    if settings.methods == ("finetune",) and not any(spec.has_network for spec in models):
        raise TaskError(f"{models[0].text} has no weights to fine-tune", do="Use --method cox, or give a network")
    # Refuses impossible splits before hours of reading scans.
    _plan(pool_patients(table.items), settings)
    return run_pipeline(
        "outcome",
        ItemRun(models=models, table=table, out=out, store=store, cache=cache, notify=on_part),
        settings,
        lambda inputs, notify: _predict(inputs, out, settings, store, notify),
        cut="finetune" in settings.methods,
    )


def list_arms(inputs: TaskInputs, patients: PooledPatients) -> list[Arm]:
    """List the arms, those with most inputs first: models with clinical columns (if any), models only, clinical columns only."""
    images = [
        Arm(
            name=model.name,
            features=None if model.features is None else patients.average(model.features),
            stage_ends=model.stage_ends,
            encoder=model.encoder,
            crops=inputs.crops,
        )
        for model in inputs.models
    ]
    if not patients.clinical[0]:
        return images
    both = [Arm(name=f"{arm.name} + {CLINICAL}", features=arm.features, clinical=True) for arm in images]
    return [*both, *images, Arm(name=CLINICAL, clinical=True)]


def note_patients(inputs: TaskInputs, patients: PooledPatients) -> list[str]:
    """Describe how lesions are pooled and missing clinical values are imputed."""
    notes = []
    items = len(inputs.table)
    if items > len(patients):
        how = "their features are averaged; after fine-tuning, the lesion with the highest risk counts"
        notes.append(f"{items} items of {len(patients)} patients: several of one patient are pooled ({how})")
    missing = {name: count for name, count in count_missing(patients.clinical).items() if count}
    if missing:
        counts = ", ".join(f"{name} {count}" for name, count in missing.items())
        how = "imputed within each training set by its median or most frequent value, with an indicator for missingness"
        notes.append(f"missing clinical values (of {len(patients)} patients): {counts}; {how}")
    return notes


def _predict(inputs: TaskInputs, out: Path, settings: OutcomeSettings, store: Store | None, notify: Notify) -> Evaluation:
    patients = pool_patients(inputs.table.items)
    arms, names = list_arms(inputs, patients), np.array(patients.names)
    splits, subsets, left_out = _plan(patients, settings)
    times = choose_times(patients.times, patients.events)
    endpoint = choose_endpoint(
        settings.primary,
        measures=["harrell_c"],
        models=[arm.name for arm in arms],
        methods=[method for method in settings.methods if sum(arm.can(method) for arm in arms) > 1],
        subsets=[subset.name for subset in subsets],
    )
    found: list[FoldScores] = []
    for subset in subsets:
        for arm in arms:
            for method in (method for method in settings.methods if arm.can(method)):
                notify(f"{arm.name}: {method}, {subset.name} of the labels")
                predicted = predict_out_of_fold(
                    arm, method, patients, splits, times, subset=subset, finetuning=settings.finetuning, seed=settings.seed
                )
                found.append(FoldScores(arm=arm.name, method=method, subset=subset.name, out_of_fold=predicted))
    if not found:
        raise TaskError("no model is left", do="Fine-tuning needs a network; add cox to --method")
    notify("intervals")
    write_splits(out / "splits.csv", splits, patients.names, names)
    kept = _keep_model(inputs, arms, patients, times, settings, out)
    shown = next((one for one in reversed(found) if one.arm == inputs.models[0].name), found[-1])
    chosen = choose_by_risk(patients, shown.out_of_fold)
    write_examples(out, inputs, chosen, model=shown.arm, method=shown.method, store=store)
    tested = patients.list_members(np.unique(np.concatenate([split.test for split in splits])))
    summary = Summary(
        task="outcome",
        classes=("censored", "event"),
        measurements=tuple(_measure(found, predict_without_features(patients, splits, times), settings)),
        comparisons=correct_comparisons(_compare(found, settings), endpoint),
        notes=(
            *warn_of_overlap(inputs, tested),
            *inputs.notes,
            *map(inform, note_patients(inputs, patients)),
            inform(_state_counts(patients, found[-1].out_of_fold)),
            *explain_undefined(found[0].out_of_fold),
            *map(warn, left_out),
            *map(inform, _note_methods(settings, kept)),
        ),
        extra={
            "patients": len(patients),
            "events": int(patients.events.sum()),
            "pairs": count_comparable(found[-1].out_of_fold),
            "times": times,
            "predicted": [_describe(one) for one in found if one.subset == subsets[-1].name],
        },
    )
    return Evaluation(rows=[row for one in found for row in _list_rows(one)], summary=summary)


def _plan(patients: PooledPatients, settings: OutcomeSettings) -> tuple[list[Split], list[Subset], list[str]]:
    """Plan splits and few-shot subsets, with notes on subsets that are impossible."""
    strata = stratify_patients(patients, settings.folds) if patients.splits is None else None
    splits = plan_splits(
        patients.names, strata, folds=settings.folds, repeats=settings.count_repeats(), seed=settings.seed, given=patients.splits
    )
    refuse_incomparable(patients, splits)
    largest = find_largest_count(splits, patients.events, np.array(patients.names))
    return splits, *list_subsets(settings.shares, settings.per_class, settings.draws, largest)


def _state_counts(patients: PooledPatients, predictions: OutOfFold) -> str:
    events, pairs = int(patients.events.sum()), count_comparable(predictions)
    known = count_noun(pairs, "pair of patients is comparable and is", "pairs of patients are comparable and are")
    return f"{count_noun(events, 'event')} among {count_noun(len(patients), 'patient')}; {known} compared in each repeat"


def _note_methods(settings: OutcomeSettings, kept: str) -> list[str]:
    notes = [f"model/ holds: {kept}"] if kept else ["no model is kept: only the Cox elastic net can be saved without pickle"]
    if "forest" in settings.methods:
        notes.append("random survival forests are not saved, as this would require pickle; only the Cox elastic net is kept")
    if "finetune" in settings.methods:
        notes.append("fine-tuning uses the image only, and its model is not saved")
    return notes


def _measure(found: Sequence[FoldScores], reference: OutOfFold, settings: OutcomeSettings) -> list[Measurement]:
    rows = []
    for one in found:
        intervals = measure_outcome(one.out_of_fold, draws=settings.resamples, seed=settings.seed)
        rows += [_state(name, one.arm, one.method, one.subset, interval) for name, interval in intervals.items()]
    if "integrated_brier" in list_measures(reference):
        interval = measure_outcome(reference, draws=settings.resamples, seed=settings.seed)["integrated_brier"]
        rows.append(_state("integrated_brier", "no features", "kaplan-meier", _ALL, interval))
    return rows


def _state(name: str, arm: str, method: str, subset: str, interval: Interval) -> Measurement:
    return Measurement(name=name, model=arm, method=method, subset=subset, interval=interval)


def _compare(found: Sequence[FoldScores], settings: OutcomeSettings) -> list[Comparison]:
    """Compare Harrell's C of every two arms with the same method and subset."""
    return [
        Comparison(
            name="harrell_c",
            first=a.arm,
            second=b.arm,
            method=a.method,
            subset=a.subset,
            difference=compare_outcome("harrell_c", a.out_of_fold, b.out_of_fold, draws=settings.resamples, seed=settings.seed),
        )
        for a, b in combinations(found, 2)
        if (a.method, a.subset) == (b.method, b.subset)
    ]


def _describe(one: FoldScores) -> dict[str, Any]:
    return {
        "model": one.arm,
        "method": one.method,
        "groups": describe_groups(one.out_of_fold),
        "calibration": describe_calibration(one.out_of_fold),
        "auc": describe_auc(one.out_of_fold),
    }


def _list_rows(one: FoldScores) -> list[dict[str, Any]]:
    found = one.out_of_fold
    return [
        {
            "item": found.patients[row],
            "patient": found.patients[row],
            "repeat": repeat,
            "fold": int(found.fold[row, repeat]),
            "draw": 0,
            "subset": one.subset,
            "model": one.arm,
            "method": one.method,
            "label": "event" if found.event[row] else "censored",
            "time": float(found.time[row]),
            "risk": float(found.risk[row, repeat]),
            "high_risk": int(found.high[row, repeat]),
            **{f"survival_{time:g}": float(found.survival[row, repeat, t]) for t, time in enumerate(found.times)},
        }
        for repeat in range(found.risk.shape[1])
        for row in range(len(found.time))
    ]


def _keep_model(
    inputs: TaskInputs,
    arms: Sequence[Arm],
    patients: PooledPatients,
    times: NDArray[np.float64],
    settings: OutcomeSettings,
    out: Path,
) -> str:
    """Fit Cox's elastic net of the first arm to all patients except given test patients, and save it; returns its description."""
    if "cox" not in settings.methods:
        return ""
    first = inputs.models[0]
    # The first arm has the most inputs.
    arm = arms[0]
    train = np.arange(len(patients))
    if patients.splits is not None:
        train = np.flatnonzero(patients.splits == "train")
    design, model = fit_frozen(arm, "cox", patients, train, settings.seed)
    if not isinstance(model, CoxModel):
        return ""
    risk = model.score(
        design.encode(None if arm.features is None else arm.features[train], [patients.clinical[row] for row in train])
    )
    fitted = patients.list_members(train)
    clinical = [column.name for column in design.clinical.columns] if design.clinical else []
    save_outcome_model(
        OutcomeModel(
            source=describe_source(first.spec),
            design=design,
            cox=model,
            cut=float(np.median(risk)),
            times=times,
            crop=inputs.crop,
            encoder=first.encoder,
            contract=make_contract(
                [inputs.table.items[i] for i in fitted], [inputs.hashes[i] for i in fitted], clinical, spacing=inputs.crop.spacing
            ),
        ),
        out / "model",
    )
    return f"the Cox elastic net on {arm.name}, fitted to {len(train)} patients"
