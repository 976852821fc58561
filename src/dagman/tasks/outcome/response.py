"""Predict a response (a label per patient) by a linear probe of the image, of clinical columns, and of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman.evaluation.classification_measures import (
    Scored,
    compare_scores,
    describe_curves,
    list_compared,
    measure_scores,
    score_out_of_fold,
)
from dagman.evaluation.results import Results, Summary, choose_endpoint, correct_comparisons
from dagman.evaluation.splits import (
    Indices,
    Split,
    Subset,
    find_largest_count,
    list_subsets,
    plan_splits,
    write_splits,
)
from dagman.notes import inform, warn
from dagman.store.manifest import Store
from dagman.tables.clinical import list_categorical
from dagman.tables.patients import PooledPatients, pool_patients
from dagman.tables.table import Table
from dagman.tasks.contract import make_contract
from dagman.tasks.head_models import Classifier, describe_source, make_head, save_classifier
from dagman.tasks.inputs.examples import choose_scored, write_examples
from dagman.tasks.inputs.label_kinds import refuse_continuous
from dagman.tasks.inputs.model_inputs import TaskInputs, warn_of_overlap
from dagman.tasks.models import ModelSpec
from dagman.tasks.outcome.folds import Arm
from dagman.tasks.outcome.time_to_event import OutcomeSettings, list_arms, note_patients
from dagman.tasks.pipeline import Evaluation, ItemRun, Notify, run_pipeline
from dagman.tasks.probes import fit_linear_probe, fit_scaled_probe
from dagman.tasks.survival_models import fit_design

METHOD = "linear"
Codes = NDArray[np.int64]


def predict_response(
    models: Sequence[ModelSpec],
    table: Table,
    out: str | Path,
    settings: OutcomeSettings | None = None,
    *,
    store: Store | None = None,
    cache: str | Path | None = None,
    on_part: Callable[[str], None] | None = None,
) -> Results:
    """Predict a label of patients out of fold and write the results folder, except for the report.

    The method is the linear probe of `dagman classify`; `settings.methods` is ignored. Lesions of one patient are pooled first.
    Arguments are those of `classify_items`; the table may also have `clinical` columns.

    Raises:
        TaskError: The label is continuous, or the patients cannot be split.
    """
    settings, out = settings or OutcomeSettings(), Path(out)
    settings = replace(settings, repeats=settings.count_repeats(given=table.splits is not None))
    refuse_continuous(table)
    _plan(pool_patients(table.items), table, settings)
    run = ItemRun(models=models, table=table, out=out, store=store, cache=cache, notify=on_part)
    return run_pipeline("outcome", run, settings, lambda inputs, notify: _predict(inputs, out, settings, store, notify))


def score_response(arm: Arm, patients: PooledPatients, codes: Codes, train: Indices, test: Indices, *, seed: int = 0) -> NDArray:
    """Fit a probe to the training patients and compute probabilities of the tested ones (n K, with the K classes in training).

    The image by itself is probed as in `dagman classify`. Along with clinical columns, it is reduced to principal components, whose
    scale is comparable.
    """
    names = np.array(patients.names)[train]
    if arm.features is not None and not arm.clinical:
        probe = fit_linear_probe(arm.features[train], codes[train], names, stage_ends=arm.stage_ends, seed=seed)
        return probe.score(arm.features[test])
    kept = [patients.clinical[row] for row in train]
    features = None if arm.features is None else arm.features
    design = fit_design(
        None if features is None else features[train], kept, clinical=True, categorical=list_categorical(patients.clinical)
    )
    numbers = [
        design.encode(None if features is None else features[rows], [patients.clinical[row] for row in rows])
        for rows in (train, test)
    ]
    return fit_scaled_probe(numbers[0], codes[train], names, seed=seed).score(numbers[1])


def _predict(inputs: TaskInputs, out: Path, settings: OutcomeSettings, store: Store | None, notify: Notify) -> Evaluation:
    table, patients = inputs.table, pool_patients(inputs.table.items)
    codes, names = _code(patients, table), np.array(patients.names)
    splits, subsets, left_out = _plan(patients, table, settings)
    arms = list_arms(inputs, patients)
    endpoint = choose_endpoint(
        settings.primary,
        measures=list_compared(),
        models=[arm.name for arm in arms],
        methods=[METHOD],
        subsets=[subset.name for subset in subsets],
    )
    found: list[Scored] = []
    rows: list[dict[str, Any]] = []
    for subset in subsets:
        for arm in arms:
            notify(f"{arm.name}: {subset.name} of the labels")
            scored, written = _score_subset(arm, patients, codes, table, splits, subset, settings.seed)
            found.append(scored)
            rows += written
    notify("intervals")
    write_splits(out / "splits.csv", splits, patients.names, names)
    kept = _keep_model(inputs, arms, patients, codes, settings, out)
    shown = next((one for one in reversed(found) if one.model == inputs.models[0].name), found[-1])
    chosen = choose_scored(inputs, shown, dict(zip(patients.names, patients.items, strict=True)))
    write_examples(out, inputs, chosen, model=shown.model, method=shown.method, store=store)
    tested = patients.list_members(np.unique(np.concatenate([split.test for split in splits])))
    summary = Summary(
        task="response",
        classes=table.classes,
        measurements=tuple(m for s in found for m in measure_scores(s, resamples=settings.resamples, seed=settings.seed)),
        comparisons=correct_comparisons(compare_scores(found, resamples=settings.resamples, seed=settings.seed), endpoint),
        notes=(
            *warn_of_overlap(inputs, tested),
            *inputs.notes,
            *map(inform, note_patients(inputs, patients)),
            *map(warn, left_out),
            inform(kept),
        ),
        extra={
            "curves": [describe_curves(s, seed=settings.seed) for s in found if s.subset == subsets[-1].name],
            "counts": {name: int(np.sum(codes == code)) for code, name in enumerate(table.classes)},
            "patients": len(patients),
            "fresh": [model.name for model in inputs.models if model.encoder is not None and model.encoder.config.fresh],
        },
    )
    return Evaluation(rows=rows, summary=summary)


def _score_subset(
    arm: Arm, patients: PooledPatients, codes: Codes, table: Table, splits: Sequence[Split], subset: Subset, seed: int
) -> tuple[Scored, list[dict[str, Any]]]:
    def score(split: Split, train: Indices, draw: int) -> NDArray[np.float64]:
        # A class without training patients in the given split has no column.
        present, compact = np.unique(codes[train], return_inverse=True)
        own = np.zeros(len(codes), dtype=np.int64)
        own[train] = compact
        scores = np.zeros((len(split.test), len(table.classes)))
        scores[:, present] = score_response(arm, patients, own, train, split.test, seed=seed)
        return scores

    return score_out_of_fold(
        score,
        names=patients.names,
        patients=np.array(patients.names),
        codes=codes,
        classes=table.classes,
        splits=splits,
        subset=subset,
        model=arm.name,
        method=METHOD,
        seed=seed,
    )


def _code(patients: PooledPatients, table: Table) -> Codes:
    places = {name: code for code, name in enumerate(table.classes)}
    return np.array([places[str(item.label)] for item in patients.items], dtype=np.int64)


def _plan(patients: PooledPatients, table: Table, settings: OutcomeSettings) -> tuple[list[Split], list[Subset], list[str]]:
    """Plan splits and few-shot subsets, with notes on subsets that are impossible."""
    codes = _code(patients, table)
    splits = plan_splits(
        patients.names,
        codes,
        folds=settings.folds,
        repeats=settings.count_repeats(),
        seed=settings.seed,
        given=patients.splits,
        classes=table.classes,
    )
    largest = find_largest_count(splits, codes, np.array(patients.names))
    return splits, *list_subsets(settings.shares, settings.per_class, settings.draws, largest)


def _keep_model(
    inputs: TaskInputs, arms: Sequence[Arm], patients: PooledPatients, codes: Codes, settings: OutcomeSettings, out: Path
) -> str:
    """Fit the probe of the image to all patients except given test patients, and save it as a classifier."""
    first = inputs.models[0]
    arm = next(arm for arm in arms if arm.name == first.name)
    train = np.arange(len(patients)) if patients.splits is None else np.flatnonzero(patients.splits == "train")
    if arm.features is None:
        raise ValueError("no features were needed")
    named = np.array(patients.names)[train]
    fitted = patients.list_members(train)
    probe = fit_linear_probe(arm.features[train], codes[train], named, stage_ends=arm.stage_ends, seed=settings.seed)
    classifier = Classifier(
        classes=inputs.table.classes,
        method=METHOD,
        spec=describe_source(first.spec),
        encoder=first.encoder,
        head=make_head(probe),
        crop=inputs.crop,
        contract=make_contract(
            [inputs.table.items[i] for i in fitted],
            [inputs.hashes[i] for i in fitted],
            labels=inputs.table.classes,
            spacing=inputs.crop.spacing,
        ),
    )
    save_classifier(classifier, out / "model")
    return f"model/ holds the linear probe on {first.name} only, fitted to {len(train)} patients"
