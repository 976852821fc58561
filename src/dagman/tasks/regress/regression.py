"""Predict a number per item out of fold, by a ridge probe or fine-tuning, full- and few-shot, with intervals.

Several models are compared on the same items, crops, splits and draws. Predictions of fine-tuned networks are saved as they are
computed, so that the same command resumes after an interruption.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dagman.encoder.embedding import list_stage_ends
from dagman.errors import TaskError
from dagman.evaluation.results import Results, Summary, choose_endpoint, correct_comparisons
from dagman.evaluation.splits import Indices, Protocol, Split, Subset, draw_subset, list_subsets, plan_splits, write_splits
from dagman.notes import inform, warn
from dagman.randomness import address
from dagman.records.counts import count_noun, list_some
from dagman.records.hashes import hash_bytes
from dagman.records.journal import append_row, read_rows
from dagman.records.names import suggest_name
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.tables.table import Table
from dagman.tasks.contract import make_contract
from dagman.tasks.finetuning import FinetunedModel, FinetuneSettings, finetune, hold_out, pool_crops
from dagman.tasks.head_models import describe_source
from dagman.tasks.inputs.examples import write_examples
from dagman.tasks.inputs.model_inputs import ModelInput, TaskInputs, count_parts, warn_of_overlap
from dagman.tasks.models import ModelSpec
from dagman.tasks.pipeline import Evaluation, ItemRun, Notify, run_pipeline
from dagman.tasks.probes import RidgeProbe, fit_ridge_probe
from dagman.tasks.regress.examples import choose_by_error
from dagman.tasks.regress.model import RegressionModel, make_ridge_head, save_regression, scale_head
from dagman.tasks.regress.scores import COMPARED, Predicted, compare_numbers, measure_numbers

METHODS = ("ridge", "finetune")
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RegressionSettings(Protocol):
    """Settings of a regression and its evaluation."""

    label: str
    "Column of the number, which is one of the table's `clinical` columns."
    methods: tuple[str, ...] = ("ridge",)
    "Some of METHODS; fine-tuning takes longer."
    crop: CropSpec = FROM_SIZE
    device: str = "auto"
    precision: str = "fp32"
    finetuning: FinetuneSettings = field(default_factory=FinetuneSettings)

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise TaskError(f"unknown method '{method}'", do=suggest_name(method, METHODS))


def regress_items(
    models: Sequence[ModelSpec],
    table: Table,
    out: str | Path,
    settings: RegressionSettings,
    *,
    store: Store | None = None,
    cache: str | Path | None = None,
    on_part: Callable[[str], None] | None = None,
) -> Results:
    """Predict a number per item of a table out of fold and write the results folder, except for the report.

    With a single model, a regression fitted to all training items is saved in `out/model`: fine-tuned if requested, otherwise the
    ridge probe. Arguments are those of `classify_items`; the table must have been read with the label among its `clinical` columns,
    and rows without a number are skipped with a warning.

    Raises:
        TaskError: The column has no distinct numbers, the items cannot be split, or no model supports the methods.
    """
    out, table = Path(out), take_numbers(table, settings.label)
    if not any(_can(spec, method) for spec in models for method in settings.methods):
        raise TaskError(f"{models[0].text} has no weights to fine-tune", do="Use --method ridge, or give a network")
    repeats = settings.count_repeats(trains="finetune" in settings.methods, given=table.splits is not None)
    settings = replace(settings, repeats=repeats)
    # Refuses impossible splits before hours of reading scans.
    _plan(table, settings)
    return run_pipeline(
        "regress",
        ItemRun(models=models, table=table, out=out, store=store, cache=cache, notify=on_part),
        settings,
        lambda inputs, notify: _Regression(inputs=inputs, out=out, settings=settings, store=store, notify=notify).evaluate(),
        embed="ridge" in settings.methods,
        cut="finetune" in settings.methods,
    )


def take_numbers(table: Table, label: str) -> Table:
    """Keep the items that have a number in a column, and warn about the others.

    Raises:
        TaskError: The column holds words, no numbers, or only equal numbers.
    """
    words = [item for item in table.items if isinstance(item.clinical[label], str)]
    if words:
        what = f"column '{label}' holds words ('{words[0].clinical[label]}'), not numbers"
        raise TaskError(what, where=table.path, do=f"For classes use dagman classify --label {label}")
    known = tuple(item for item in table.items if item.clinical[label] is not None)
    if len({item.clinical[label] for item in known}) < 2:
        what = f"column '{label}' holds {'one number only' if known else 'no number'}"
        raise TaskError(what, where=table.path, do="Choose another --label")
    notes = table.notes
    if missing := [item.index + 1 for item in table.items if item.clinical[label] is None]:
        text = f"column '{label}' has no number in {count_noun(len(missing), 'row')}: skipped (row {list_some(missing)})"
        notes = (*notes, warn(text))
    return replace(table, items=known, notes=notes, roles={**table.roles, "label": label})


def read_numbers(table: Table, label: str) -> Floats:
    """Return the number of each item, n."""
    return np.array([item.clinical[label] for item in table.items], dtype=np.float64)


def _can(spec: ModelSpec, method: str) -> bool:
    return method != "finetune" or spec.has_network


def _plan(table: Table, settings: RegressionSettings) -> tuple[list[Split], list[Subset], list[str]]:
    """Plan splits and few-shot subsets, with notes on subsets that are impossible."""
    splits = plan_splits(
        table.patients, folds=settings.folds, repeats=settings.count_repeats(), seed=settings.seed, given=table.splits
    )
    largest = min(len(set(table.patients[split.train].tolist())) for split in splits)
    return splits, *list_subsets(settings.shares, settings.per_class, settings.draws, largest)


@dataclass(kw_only=True, eq=False)
class _Regression:
    """A run over every model, method, subset, draw and split on the same items."""

    inputs: TaskInputs
    out: Path
    settings: RegressionSettings
    store: Store | None
    notify: Notify

    def __post_init__(self) -> None:
        self.table = self.inputs.table
        self.values = read_numbers(self.table, self.settings.label)
        self.splits, self.subsets, self.left_out = _plan(self.table, self.settings)
        self.kept = {row["key"]: row["predicted"] for row in read_rows(self.out / "scores.jsonl")}
        self.pooled: dict[str, NDArray[np.float32]] = {}
        self.tuned: FinetunedModel | None = None
        "Model fitted to all training items of the table's own split, which need not be fitted again to be saved."

    def evaluate(self) -> Evaluation:
        settings, table = self.settings, self.table
        write_splits(self.out / "splits.csv", self.splits, table.names, table.patients)
        endpoint = choose_endpoint(
            settings.primary,
            measures=COMPARED,
            models=[model.name for model in self.inputs.models],
            methods=[name for name in settings.methods if sum(_can(model.spec, name) for model in self.inputs.models) > 1],
            subsets=[subset.name for subset in self.subsets],
        )
        scored: list[Predicted] = []
        rows: list[dict[str, Any]] = []
        for model, method, subset in itertools.product(self.inputs.models, settings.methods, self.subsets):
            if _can(model.spec, method):
                one, written = self._score(model, method, subset)
                scored.append(one)
                rows += written
        shown = next((one for one in reversed(scored) if one.model == self.inputs.models[0].name), scored[-1])
        self._keep_examples(shown, rows)
        self.notify("intervals")
        judged = {"resamples": settings.resamples, "seed": settings.seed}
        summary = Summary(
            task="regress",
            measurements=tuple(row for one in scored for row in measure_numbers(one, **judged)),
            comparisons=correct_comparisons(compare_numbers(scored, **judged), endpoint),
            notes=(
                *warn_of_overlap(self.inputs, np.unique(np.concatenate([split.test for split in self.splits]))),
                *self.inputs.notes,
                *map(warn, self.left_out),
                *map(inform, self._explain()),
            ),
            extra={
                "label": settings.label,
                "patients": len(set(table.patients.tolist())),
                "range": [float(self.values.min()), float(self.values.max())],
                "mean": float(self.values.mean()),
                "deviation": float(self.values.std()),
                "spacing": self.inputs.crop.spacing,
                "fresh": [model.name for model in self.inputs.models if model.encoder is not None and model.encoder.config.fresh],
            },
        )
        return Evaluation(rows=rows, summary=summary, keep=self._keep if len(self.inputs.models) == 1 else None)

    def _keep_examples(self, shown: Predicted, rows: Sequence[Mapping[str, Any]]) -> None:
        wanted = shown.model, shown.method, shown.subset
        own = [row for row in rows if (row["model"], row["method"], row["subset"]) == wanted]
        chosen = choose_by_error({item.name: item for item in self.table.items}, own)
        write_examples(self.out, self.inputs, chosen, model=shown.model, method=shown.method, store=self.store)

    def _score(self, model: ModelInput, method: str, subset: Subset) -> tuple[Predicted, list[dict[str, Any]]]:
        """Predict all repeats and draws of one model, method and subset; returns predictions and rows of predictions.csv."""
        table, everyone = self.table, np.zeros(len(self.table))
        columns = subset.draws * (1 + max(split.repeat for split in self.splits))
        predicted, folds = np.full((len(table), columns), np.nan), np.full((len(table), columns), -1)
        rows: list[dict[str, Any]] = []
        runs = list(itertools.product(self.splits, range(subset.draws)))
        count = count_parts(self.notify, f"{model.name}: {method}, {subset.name} of the labels, fit", len(runs))
        for done, (split, draw) in enumerate(runs, 1):
            train = draw_subset(
                split, everyone, table.patients, share=subset.share, per_class=subset.per_class, seed=self.settings.seed, draw=draw
            )
            numbers = self._predict(model, method, split, train, draw)
            count(done)
            place = split.test, split.repeat * subset.draws + draw
            predicted[place], folds[place] = numbers, split.fold
            about = {"repeat": split.repeat, "fold": split.fold, "draw": draw, "subset": subset.name}
            about |= {"model": model.name, "method": method}
            rows += [
                {"item": table.names[i], "patient": table.patients[i], **about, "label": self.values[i], "predicted": number}
                for i, number in zip(split.test, numbers.tolist(), strict=True)
            ]
        tested = ~np.isnan(predicted).any(axis=1)
        one = Predicted(
            model=model.name,
            method=method,
            subset=subset.name,
            values=self.values[tested],
            patients=table.patients[tested],
            predicted=predicted[tested],
            folds=folds[tested],
        )
        return one, rows

    def _predict(self, model: ModelInput, method: str, split: Split, train: Indices, draw: int) -> Floats:
        if method == "ridge":
            return self._fit_ridge(model, train).predict(_take_features(model)[split.test])
        seed = self._draw_seed(split.repeat, split.fold, draw)
        parts = [[f"{self.table.names[i]}={self.values[i]}" for i in part] for part in (train, split.val, split.test)]
        crops = (self.inputs.crop.mm, self.inputs.crop.spacing)
        key = hash_bytes(f"1|{model.digest}|{self.settings.finetuning}|{crops}|{seed}|{parts}".encode())
        if key not in self.kept:
            tuned = self._finetune(model, train, split.val, seed)
            if self.table.splits is not None and split.repeat == draw == 0 and len(train) == len(split.train):
                self.tuned = tuned
            self.kept[key] = tuned.predict([self.inputs.crops[i] for i in split.test])[:, 0].tolist()
            append_row(self.out / "scores.jsonl", {"key": key, "predicted": self.kept[key]})
        return np.array(self.kept[key], dtype=np.float64)

    def _draw_seed(self, repeat: int, fold: int, draw: int) -> int:
        return address(self.settings.seed, "regress", repeat, fold, draw) % 2**62

    def _fit_ridge(self, model: ModelInput, train: Indices) -> RidgeProbe:
        features, patients = _take_features(model)[train], self.table.patients[train]
        return fit_ridge_probe(features, self.values[train], patients, stage_ends=model.stage_ends, seed=self.settings.seed)

    def _finetune(self, model: ModelInput, train: Indices, val: Indices, seed: int) -> FinetunedModel:
        """Fine-tune from the ridge probe, with the squared error of standardised values as loss."""
        if model.encoder is None:
            raise ValueError("only networks are fine-tuned")
        if model.name not in self.pooled:
            self.pooled[model.name] = pool_crops(model.encoder, self.inputs.crops)
        patients = self.table.patients
        fit, stop = (train, val) if len(val) else hold_out(patients, np.zeros(len(patients)), train, seed=seed)
        shift, scale = float(self.values[fit].mean()), float(self.values[fit].std()) or 1.0
        ends = list_stage_ends(model.encoder)
        probe = fit_ridge_probe(
            self.pooled[model.name][fit], self.values[fit], patients[fit], stage_ends=ends, seed=self.settings.seed
        )
        tuned = finetune(
            model.encoder,
            self.inputs.crops,
            ((self.values - shift) / scale).astype(np.float32),
            loss=_measure_squared_error,
            outputs=1,
            train=fit,
            val=stop,
            start=scale_head(make_ridge_head(probe), scale=1 / scale, shift=-shift / scale),
            settings=self.settings.finetuning,
            seed=seed,
        )
        return replace(tuned, head=scale_head(tuned.head, scale=scale, shift=shift))

    def _keep(self) -> None:
        """Fit to all items except given test and validation parts, and write `out/model`."""
        model, table, settings = self.inputs.models[0], self.table, self.settings
        everything = np.arange(len(table))
        train = everything if table.splits is None else everything[table.splits == "train"]
        val = everything[:0] if table.splits is None else everything[table.splits == "val"]
        tunes = "finetune" in settings.methods and model.encoder is not None
        fitted = [*train, *val] if tunes else train
        keep = partial(
            RegressionModel,
            label=settings.label,
            range=(float(self.values[fitted].min()), float(self.values[fitted].max())),
            spec=describe_source(model.spec),
            crop=self.inputs.crop,
            contract=make_contract(
                [table.items[i] for i in fitted], [self.inputs.hashes[i] for i in fitted], spacing=self.inputs.crop.spacing
            ),
        )
        if tunes:
            # With a given split, the seed is that of the scored network, so that a resumed run saves the same model.
            seed = address(settings.seed, "regress", "final") % 2**62 if table.splits is None else self._draw_seed(0, 0, 0)
            tuned = self.tuned or self._finetune(model, train, val, seed)
            kept = keep(method="finetune", encoder=tuned.encoder, head=tuned.head)
        else:
            kept = keep(method="ridge", encoder=model.encoder, head=make_ridge_head(self._fit_ridge(model, train)))
        save_regression(kept, self.out / "model")

    def _explain(self) -> list[str]:
        notes = [f"Spearman's ρ ranks items within a fold; errors are over all items, in the unit of '{self.settings.label}'"]
        if self.table.splits is not None:
            notes.append("the table's own split is used, without cross-validation")
        if self.inputs.crop.spacing is not None:
            notes.append(f"crops have a voxel size of {self.inputs.crop.spacing:.3g} mm")
        skipped = [model.name for model in self.inputs.models if not _can(model.spec, "finetune")]
        if "finetune" in self.settings.methods and skipped:
            notes.append(f"not fine-tuned, as they have no weights: {', '.join(skipped)}")
        return notes


def _take_features(model: ModelInput) -> NDArray[np.float32]:
    if model.features is None:
        raise ValueError("no features were needed")
    return model.features


def _measure_squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(outputs[:, 0].float(), targets)
