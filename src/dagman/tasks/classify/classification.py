"""Task 1 of the paper: classify items by a linear probe, k-NN or fine-tuning, full- and few-shot, by patient, with intervals.

Several models are compared on the same items, crops, splits and draws. Scores are saved as they are computed, so that the same
command resumes after an interruption.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dagman.encoder.embedding import list_stage_ends
from dagman.errors import TaskError
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
    Protocol,
    Split,
    Subset,
    find_largest_count,
    list_subsets,
    plan_splits,
    write_splits,
)
from dagman.notes import inform, warn
from dagman.randomness import address
from dagman.records.counts import count_noun
from dagman.records.hashes import hash_bytes
from dagman.records.journal import append_row, read_rows
from dagman.records.names import suggest_name
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.tables.table import Table
from dagman.tasks.contract import make_contract
from dagman.tasks.finetuning import FinetunedModel, FinetuneSettings, finetune, hold_out, pool_crops
from dagman.tasks.head_models import Classifier, describe_source, make_head, save_classifier, to_probabilities
from dagman.tasks.inputs.examples import choose_scored, write_examples
from dagman.tasks.inputs.label_kinds import refuse_continuous
from dagman.tasks.inputs.model_inputs import ModelInput, TaskInputs, count_parts, warn_of_overlap
from dagman.tasks.models import ModelSpec
from dagman.tasks.pipeline import Evaluation, ItemRun, Notify, run_pipeline
from dagman.tasks.probes import fit_linear_probe, linear_probe, neighbour_probe

METHODS = ("linear", "knn", "finetune")
_PROBES = ("linear", "knn")
SMOOTHING = 0.1
"""Label smoothing in fine-tuning: a network soon memorises a few dozen items, and overconfidence would stop it too early."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings(Protocol):
    """Settings of a classification and its evaluation."""

    methods: tuple[str, ...] = ("linear", "knn")
    "Some of METHODS; fine-tuning takes longer."
    crop: CropSpec = FROM_SIZE
    device: str = "auto"
    precision: str = "fp32"
    finetuning: FinetuneSettings = field(default_factory=FinetuneSettings)

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise TaskError(f"unknown method '{method}'", do=suggest_name(method, METHODS))


def classify_items(
    models: Sequence[ModelSpec],
    table: Table,
    out: str | Path,
    settings: ClassificationSettings | None = None,
    *,
    store: Store | None = None,
    cache: str | Path | None = None,
    on_part: Callable[[str], None] | None = None,
) -> Results:
    """Classify a table's items out of fold and write the results folder, except for the report.

    With a single model, the network or else the linear probe fitted to all training items is saved in `out/model`.

    Args:
        models: The models to compare.
        table: Table that was read with `label`.
        out: Folder for the results.
        settings: Settings of the classification.
        store: Store to read scans from, if they are in it.
        cache: Folder that caches feature vectors; None: `features` in `out`.
        on_part: Called with a description of each step of the work.

    Raises:
        TaskError: The label is continuous, the items cannot be split, or no model supports the methods.
    """
    settings, out = _settle(settings or ClassificationSettings(), table), Path(out)
    refuse_continuous(table)
    if not any(_can(spec, method) for spec in models for method in settings.methods):
        raise TaskError(f"{models[0].text} has no weights to fine-tune", do="Use --method linear, or give a network")
    # Refuses impossible splits before hours of reading scans.
    _plan(table, settings)
    return run_pipeline(
        "classify",
        ItemRun(models=models, table=table, out=out, store=store, cache=cache, notify=on_part),
        settings,
        lambda inputs, notify: _classify(inputs, out, settings, store, notify),
        embed=any(method in _PROBES for method in settings.methods),
        cut="finetune" in settings.methods,
    )


def _classify(inputs: TaskInputs, out: Path, settings: ClassificationSettings, store: Store | None, notify: Notify) -> Evaluation:
    table = inputs.table
    splits, subsets, left_out = _plan(table, settings)
    write_splits(out / "splits.csv", splits, table.names, table.patients)
    endpoint = choose_endpoint(
        settings.primary,
        measures=list_compared(),
        models=[model.name for model in inputs.models],
        methods=[method for method in settings.methods if sum(_can(model.spec, method) for model in inputs.models) > 1],
        subsets=[subset.name for subset in subsets],
    )
    jobs = _Jobs(inputs=inputs, splits=splits, settings=settings, journal=out / "scores.jsonl")
    found: list[Scored] = []
    rows: list[dict[str, Any]] = []
    for model in inputs.models:
        for method in (method for method in settings.methods if _can(model.spec, method)):
            for subset in subsets:
                scored, written = jobs.score(model, method, subset, notify)
                found.append(scored)
                rows += written
    notify("intervals")
    tested = np.unique(np.concatenate([split.test for split in splits]))
    curves = [describe_curves(scored, seed=settings.seed) for scored in found if scored.subset == subsets[-1].name]
    summary = Summary(
        task="classify",
        classes=table.classes,
        measurements=tuple(m for s in found for m in measure_scores(s, resamples=settings.resamples, seed=settings.seed)),
        comparisons=correct_comparisons(compare_scores(found, resamples=settings.resamples, seed=settings.seed), endpoint),
        notes=(
            *warn_of_overlap(inputs, tested),
            *inputs.notes,
            *map(warn, left_out),
            *map(inform, [*_explain(inputs, settings, splits), *jobs.explain_ends()]),
        ),
        extra={
            "curves": curves,
            "counts": {name: int(np.sum(table.codes == code)) for code, name in enumerate(table.classes)},
            "patients": len(set(table.patients.tolist())),
            "spacing": inputs.crop.spacing,
            "fresh": [model.name for model in inputs.models if model.encoder is not None and model.encoder.config.fresh],
            "sized": any(item.mask is not None for item in table.items),
        },
    )
    shown = _choose_shown(inputs, found)
    items = {item.name: item for item in table.items}
    write_examples(out, inputs, choose_scored(inputs, shown, items), model=shown.model, method=shown.method, store=store)
    keep = partial(_keep_model, inputs, out, settings, jobs.tuned) if len(inputs.models) == 1 else None
    return Evaluation(rows=rows, summary=summary, keep=keep)


def _choose_shown(inputs: TaskInputs, found: Sequence[Scored]) -> Scored:
    """Choose the scores whose examples the report shows: the first model's, with all labels, by fine-tuning if used."""
    of_first = [scored for scored in found if scored.model == inputs.models[0].name]
    scored = next((s for s in reversed(of_first) if s.method == "finetune"), of_first[-1])
    if scored.method == "knn":
        scored = next((s for s in reversed(of_first) if s.method == "linear"), scored)
    return scored


def _can(spec: ModelSpec, method: str) -> bool:
    return method != "finetune" or spec.has_network


def _settle(settings: ClassificationSettings, table: Table) -> ClassificationSettings:
    """Set the number of repeats to its default if it was not given."""
    repeats = settings.count_repeats(trains="finetune" in settings.methods, given=table.splits is not None)
    return replace(settings, repeats=repeats)


def _plan(table: Table, settings: ClassificationSettings) -> tuple[list[Split], list[Subset], list[str]]:
    """Plan splits and few-shot subsets, with notes on subsets that are impossible."""
    splits = plan_splits(
        table.patients,
        table.codes,
        folds=settings.folds,
        repeats=settings.count_repeats(),
        seed=settings.seed,
        given=table.splits,
        classes=table.classes,
    )
    largest = find_largest_count(splits, table.codes, table.patients)
    return splits, *list_subsets(settings.shares, settings.per_class, settings.draws, largest)


@dataclass(kw_only=True, eq=False)
class _Jobs:
    """Computes the scores of every model, method, subset, draw and split, once each, and saves them in a journal."""

    inputs: TaskInputs
    splits: list[Split]
    settings: ClassificationSettings
    journal: Path

    def __post_init__(self) -> None:
        rows = read_rows(self.journal)
        self.kept = {row["key"]: row["scores"] for row in rows}
        self.ended = {row["key"]: row["ended"] for row in rows if row.get("ended")}
        self.starts: dict[str, NDArray[np.float32]] = {}
        self.last_ended = ""
        self.tuned: FinetunedModel | None = None
        "Model fitted to all training items of the table's own split, which need not be fitted again to be saved."

    def explain_ends(self) -> list[str]:
        """Describe why fine-tunings ended, with the count of each reason."""
        total = count_noun(len(self.ended), "training")
        return [f"fine-tuning: {why} in {count} of {total}" for why, count in Counter(self.ended.values()).most_common()]

    def score(self, model: ModelInput, method: str, subset: Subset, notify: Notify) -> tuple[Scored, list[dict[str, Any]]]:
        """Score all repeats and draws of one model, method and subset; returns scores and rows of predictions.csv."""
        table, done = self.inputs.table, itertools.count(1)
        text = f"{model.name}: {method}, {subset.name} of the labels, fit"
        count = count_parts(notify, text, len(self.splits) * subset.draws)

        def score(split: Split, train: Indices, draw: int) -> Floats:
            scores = self._score_once(model, method, split, train, draw)
            count(next(done))
            return scores

        return score_out_of_fold(
            score,
            names=table.names,
            patients=table.patients,
            codes=table.codes,
            classes=table.classes,
            splits=self.splits,
            subset=subset,
            model=model.name,
            method=method,
            seed=self.settings.seed,
        )

    def _score_once(self, model: ModelInput, method: str, split: Split, train: Indices, draw: int) -> Floats:
        names, codes = self.inputs.table.names, self.inputs.table.codes
        assigned = [f"{names[i]}={codes[i]}" for part in (train, split.val, split.test) for i in (*part, -1)]
        chosen = self.settings.finetuning if method == "finetune" else ""
        crops = (self.inputs.crop.mm, self.inputs.crop.spacing)
        seed = _draw_seed(self.settings, split.repeat, split.fold, draw)
        key = hash_bytes(f"2|{model.digest}|{method}|{chosen}|{crops}|{seed}|{assigned}".encode())
        if key not in self.kept:
            scores = self._finetune(model, split, train, seed) if method == "finetune" else self._probe(model, method, split, train)
            self.kept[key] = scores.tolist()
            if method == "finetune":
                self.ended[key] = self.last_ended
            append_row(self.journal, {"key": key, "scores": self.kept[key], "ended": self.ended.get(key, "")})
        return np.asarray(self.kept[key], dtype=np.float64)

    def _probe(self, model: ModelInput, method: str, split: Split, train: Indices) -> Floats:
        if model.features is None:
            raise ValueError("no features were needed")
        # A class without training items in the given split has no column.
        present, compact = np.unique(self.inputs.table.codes[train], return_inverse=True)
        patients = self.inputs.table.patients[train]
        known, asked, seed = model.features[train], model.features[split.test], self.settings.seed
        if method == "linear":
            predicted = linear_probe(known, compact, patients, asked, stage_ends=model.stage_ends, seed=seed)
        else:
            predicted = neighbour_probe(known, compact, patients, asked)
        scores = np.zeros((len(split.test), len(self.inputs.table.classes)))
        scores[:, present] = predicted
        return scores

    def _finetune(self, model: ModelInput, split: Split, train: Indices, seed: int) -> Floats:
        tuned = _fit_network(self.inputs, model, train, split.val, self.settings, seed, self.starts)
        self.last_ended = tuned.ended
        if self.inputs.table.splits is not None and split.repeat == 0 and len(train) == len(split.train):
            self.tuned = tuned
        return to_probabilities(tuned.predict([self.inputs.crops[i] for i in split.test]))


def _fit_network(
    inputs: TaskInputs,
    model: ModelInput,
    train: Indices,
    val: Indices,
    settings: ClassificationSettings,
    seed: int,
    starts: dict[str, NDArray[np.float32]],
) -> FinetunedModel:
    """Fine-tune from the linear probe, stopping by `val` or else an inner split; classes have equal weight."""
    if model.encoder is None:
        raise ValueError("only networks are fine-tuned")
    codes, patients = inputs.table.codes, inputs.table.patients
    if model.name not in starts:
        starts[model.name] = pool_crops(model.encoder, inputs.crops)
    fit, stop = (train, val) if len(val) else hold_out(patients, codes, train, seed=settings.seed)
    pooled, classes = starts[model.name], len(inputs.table.classes)
    probe = fit_linear_probe(pooled[fit], codes[fit], patients[fit], stage_ends=list_stage_ends(model.encoder), seed=settings.seed)
    start = make_head(probe)
    counts = np.bincount(codes[fit], minlength=classes)
    weights = torch.tensor(len(fit) / (np.count_nonzero(counts) * np.maximum(counts, 1)), dtype=torch.float32)

    def measure_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            outputs.float(), targets, weight=weights.to(outputs.device), label_smoothing=SMOOTHING
        )

    return finetune(
        model.encoder,
        inputs.crops,
        codes,
        loss=measure_loss,
        outputs=classes,
        train=fit,
        val=stop,
        start=start if len(start.bias) == classes else None,
        settings=_spare_sides(settings.finetuning, inputs.table.classes),
        seed=seed,
    )


def _spare_sides(settings: FinetuneSettings, classes: Sequence[str]) -> FinetuneSettings:
    sided = any(word in name.lower() for name in classes for word in ("left", "right"))
    return replace(settings, flips=settings.flips.replace("x", "")) if sided else settings


def _draw_seed(settings: ClassificationSettings, repeat: int, fold: int, draw: int) -> int:
    return address(settings.seed, "classify", repeat, fold, draw) % 2**62


def _keep_model(inputs: TaskInputs, out: Path, settings: ClassificationSettings, tuned: FinetunedModel | None) -> None:
    """Fit to all items except given test and validation parts, and write `out/model`; k-NN has no model to save.

    `tuned` is the network that was already fitted to exactly these items, if any.
    """
    model, table = inputs.models[0], inputs.table
    parts = table.splits
    everything = np.arange(len(table))
    train = everything if parts is None else everything[parts == "train"]
    val = everything[:0] if parts is None else everything[parts == "val"]
    fitted = [*train, *val] if "finetune" in settings.methods else train
    about: dict[str, Any] = {
        "classes": table.classes,
        "spec": describe_source(model.spec),
        "crop": inputs.crop,
        "contract": make_contract(
            [table.items[i] for i in fitted],
            [inputs.hashes[i] for i in fitted],
            labels=table.classes,
            spacing=inputs.crop.spacing,
        ),
    }
    if "finetune" in settings.methods and model.encoder is not None:
        # With a given split, the seed is that of the scored network, so that a resumed run saves the same model.
        seed = address(settings.seed, "classify", "final") % 2**62 if parts is None else _draw_seed(settings, 0, 0, 0)
        tuned = tuned or _fit_network(inputs, model, train, val, settings, seed, {})
        save_classifier(Classifier(method="finetune", encoder=tuned.encoder, head=tuned.head, **about), out / "model")
    elif "linear" in settings.methods and model.features is not None:
        codes, patients = table.codes[train], table.patients[train]
        probe = fit_linear_probe(model.features[train], codes, patients, stage_ends=model.stage_ends, seed=settings.seed)
        save_classifier(Classifier(method="linear", encoder=model.encoder, head=make_head(probe), **about), out / "model")


def _explain(inputs: TaskInputs, settings: ClassificationSettings, splits: Sequence[Split]) -> list[str]:
    table = inputs.table
    notes = []
    if table.splits is not None:
        notes.append("the table's own split is used, without cross-validation")
    if len(table.classes) == 2:
        notes.append(f"the positive class is '{table.classes[1]}'; sensitivity and specificity are at a threshold of 0.5")
    if inputs.crop.spacing is not None:
        notes.append(f"crops have a voxel size of {inputs.crop.spacing:.3g} mm")
    if "finetune" in settings.methods and len(settings.methods) > 1:
        notes.append(
            f"finetune uses class weights and label smoothing of {SMOOTHING:g}, and the probes do not: compare methods by AUC, "
            f"not by measures that depend on probabilities"
        )
    skipped = [model.name for model in inputs.models if not _can(model.spec, "finetune")]
    if "finetune" in settings.methods and skipped:
        notes.append(f"not fine-tuned, as they have no weights: {', '.join(skipped)}")
    if len(inputs.models) > 1 and len({split.repeat for split in splits}) > 1:
        notes.append(
            "AUC is computed over pairs of items tested in the same fold, over all repeats; DeLong tests differences on these pairs"
        )
    return notes
