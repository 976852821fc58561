"""`dagman outcome`: time and event from images, clinical columns, and both, with all that a published number needs beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.encoder import Encoder
from dagman.errors import TaskError
from dagman.records.names import suggest_name
from dagman.store.manifest import Store
from dagman.tables.items import Item
from dagman.tables.table import Table
from dagman.tasks.clinical import count_missing
from dagman.tasks.cox import CoxModel
from dagman.tasks.features import choose_table_spacing, describe_refused, extract_features
from dagman.tasks.finetuning import FinetuneSettings
from dagman.tasks.item_crops import cut_items
from dagman.tasks.models import ModelSpec, load_network, load_reader, name_models
from dagman.tasks.outcome_folds import (
    METHODS,
    Arm,
    Subset,
    fit_frozen,
    predict_out_of_fold,
    predict_without_features,
    stratify_patients,
)
from dagman.tasks.outcome_metrics import (
    OutOfFold,
    compare_outcome,
    describe_auc,
    describe_calibration,
    describe_groups,
    list_measures,
    measure_outcome,
)
from dagman.tasks.outcome_model import OutcomeModel, save_outcome_model
from dagman.tasks.patients import PooledPatients, pool_patients
from dagman.tasks.protocol import Split, name_overlap, plan_splits, write_splits
from dagman.tasks.results import Comparison, Measurement, Summary, write_inputs, write_predictions, write_summary
from dagman.tasks.statistics import Interval, correct_holm
from dagman.tasks.survival import choose_times

CLINICAL = "clinical"
"""Name of the arm that sees the clinical columns alone."""
ALL = Subset(share=1.0)


@dataclass(frozen=True, kw_only=True)
class OutcomeSettings:
    """How an outcome is predicted and judged."""

    methods: tuple[str, ...] = ("cox",)
    "Of METHODS; forest and fine-tuning cost more."
    folds: int = 5
    repeats: int = 5
    shares: tuple[float, ...] = (1.0,)
    "Shares of the training patients."
    per_class: tuple[int, ...] = ()
    "Few-shot draws: patients with, and as many without the event."
    seed: int = 0
    crop_mm: float | None = None
    crop_spacing: float | None = None
    draws: int = 2000
    "Bootstrap resamples."
    finetuning: FinetuneSettings = field(default_factory=FinetuneSettings)

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise TaskError(f"there is no method '{method}'", do=suggest_name(method, METHODS))

    @property
    def subsets(self) -> list[Subset]:
        """All labels first, where they are asked for, then fewer."""
        shares = sorted({float(share) for share in self.shares}, reverse=True)
        counts = sorted(set(self.per_class), reverse=True)
        return [*(Subset(share=share) for share in shares), *(Subset(per_class=count) for count in counts)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """Predictions of one arm by one method from one subset."""

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
) -> Summary:
    """Predict time and event out of fold and write the results folder (all but the report).

    table: read with `time` and `event`, and `clinical` columns if any. Several models are given the same patients, splits and
    crops. on_part is told what is being computed.

    Raises TaskError when the table holds too few patients or events.
    """
    settings = settings or OutcomeSettings()
    tell = on_part or (lambda text: None)
    clinical = bool(table.items[0].clinical)
    gathered = _gather(models, table, settings, store, cache, tell)
    patients = gathered.patients
    arms = [*gathered.arms]
    if clinical:
        arms += [Arm(name=CLINICAL, clinical=True)]
        arms += [Arm(name=f"{arm.name} + {CLINICAL}", features=arm.features, clinical=True) for arm in gathered.arms]
    strata = stratify_patients(patients, settings.folds) if patients.splits is None else None
    names = np.array(patients.names)
    splits = plan_splits(names, strata, folds=settings.folds, repeats=settings.repeats, seed=settings.seed, given=patients.splits)
    times = choose_times(patients.times, patients.times, patients.events)
    found: list[Found] = []
    for subset in settings.subsets:
        for arm in arms:
            for method in settings.methods:
                if arm.can(method):
                    tell(f"{arm.name}, {method}, {subset.name}")
                    predicted = predict_out_of_fold(
                        arm, method, patients, splits, times, subset=subset, finetuning=settings.finetuning, seed=settings.seed
                    )
                    found.append(Found(arm=arm.name, method=method, subset=subset.name, out_of_fold=predicted))
    tell("intervals")
    reference = predict_without_features(patients, splits, times)
    overlap = _name_seen(gathered, patients, splits)
    kept = _keep_model(arms, models, patients, times, settings, gathered, Path(out))
    summary = Summary(
        task="outcome",
        classes=("censored", "event"),
        measurements=tuple(_measure(found, reference, settings)),
        comparisons=tuple(_compare(found, settings)),
        notes=(*table.notes, *gathered.notes, *_note_missing(patients), *overlap, *_note_methods(settings, kept)),
        extra={
            "patients": len(patients),
            "events": int(patients.events.sum()),
            "times": times,
            "kept": kept,
            "arms": [arm.name for arm in arms],
            "predicted": [_describe(one) for one in found if one.subset == ALL.name],
        },
    )
    write_splits(Path(out) / "splits.csv", splits, patients.names, names)
    write_predictions(out, [row for one in found for row in _list_rows(one)])
    write_inputs(out, "outcome", settings=asdict(settings), inputs=gathered.inputs | {"table": str(table.path)})
    write_summary(out, summary)
    return summary


@dataclass(frozen=True, kw_only=True, eq=False)
class _Gathered:
    """What was read of the table, for patients that every model can use."""

    patients: PooledPatients
    arms: tuple[Arm, ...]
    hashes: dict[str, set[str]]
    "Content hashes of each patient's scans."
    seen: set[str]
    encoders: dict[str, Encoder]
    crop_spacing: float | None
    notes: tuple[str, ...]
    inputs: dict[str, Any]


def _gather(
    models: Sequence[ModelSpec],
    table: Table,
    settings: OutcomeSettings,
    store: Store | None,
    cache: str | Path | None,
    tell: Callable[[str], None],
) -> _Gathered:
    names = name_models(models)
    spacing = choose_table_spacing(table, crop_mm=settings.crop_mm, crop_spacing=settings.crop_spacing)
    crops = {"store": store, "crop_mm": settings.crop_mm, "crop_spacing": spacing}
    encoders = {name: load_network(spec) for name, spec in zip(names, models, strict=True) if spec.has_network}
    tables = {}
    for name, spec in zip(names, models, strict=True):
        tell(f"features of {name}")
        tables[name] = extract_features(encoders.get(name, spec), table, cache=cache, **crops)
    usable = set.intersection(*(set(features.names) for features in tables.values()))
    if not usable:
        raise TaskError("no item can be used by every model", where=table.path, do="See what each refuses, one model at a time")
    items = [item for item in table.items if item.name in usable]
    notes = list(dict.fromkeys(note for features in tables.values() for note in describe_refused(features.refused)))
    patients = pool_patients(items)
    lesions = len(items) - len(patients)
    if lesions:
        how = "their features are averaged; after fine-tuning the highest risk counts"
        notes.append(f"{len(items)} items of {len(patients)} patients: several of one patient are pooled ({how})")
    tuned = _cut_crops(items, crops) if "finetune" in settings.methods and encoders else ()
    arms = []
    for name, features in tables.items():
        places = {item: place for place, item in enumerate(features.names)}
        values = features.values[[places[item.name] for item in items]]
        arms.append(Arm(name=name, features=patients.average(values), encoder=encoders.get(name), crops=tuned))
    hashes: dict[str, set[str]] = {}
    first = next(iter(tables.values()))
    for item, content in zip(first.items, first.hashes, strict=True):
        hashes.setdefault(item.patient, set()).add(content)
    return _Gathered(
        patients=patients,
        arms=tuple(arms),
        hashes=hashes,
        seen={content for encoder in encoders.values() for content in encoder.config.scans_seen},
        encoders=encoders,
        crop_spacing=spacing,
        notes=tuple(notes),
        inputs={"models": {name: encoders[name].digest if name in encoders else name for name in names}},
    )


def _cut_crops(items: Sequence[Item], crops: dict[str, Any]) -> tuple:
    cut = cut_items(load_reader(), items, **crops)
    places = {item.name: place for place, item in enumerate(cut.items)}
    lost = [item.name for item in items if item.name not in places]
    if lost:
        raise TaskError(f"{lost[0]} cannot be cropped for fine-tuning", do="Drop its row, or leave finetune out of --method")
    return tuple(cut.crops[places[item.name]] for item in items)


def _name_seen(gathered: _Gathered, patients: PooledPatients, splits: Sequence[Split]) -> list[str]:
    tested = sorted({int(row) for split in splits for row in split.test})
    pairs = [(patients.names[row], content) for row in tested for content in sorted(gathered.hashes[patients.names[row]])]
    warning = name_overlap([name for name, _ in pairs], [content for _, content in pairs], gathered.seen)
    return [warning] if warning else []


def _note_missing(patients: PooledPatients) -> list[str]:
    missing = {name: count for name, count in count_missing(patients.clinical).items() if count}
    if not missing:
        return []
    counts = ", ".join(f"{name} {count}" for name, count in missing.items())
    how = "filled inside each training part with its median or most frequent value, and marked by a number of their own"
    return [f"missing clinical values (of {len(patients)} patients): {counts}; {how}"]


def _note_methods(settings: OutcomeSettings, kept: str) -> list[str]:
    notes = [f"model/ holds: {kept}"] if kept else ["no model is kept: only Cox's elastic net can be stored without pickle"]
    if "forest" in settings.methods:
        notes.append("the forests are not stored: they would need pickle; what is kept is Cox's elastic net")
    if "finetune" in settings.methods:
        notes.append("fine-tuning is of the image alone, and is not stored")
    return notes


def _measure(found: Sequence[Found], reference: OutOfFold, settings: OutcomeSettings) -> list[Measurement]:
    rows = []
    for one in found:
        intervals = measure_outcome(one.out_of_fold, draws=settings.draws, seed=settings.seed)
        rows += [_state(name, one.arm, one.method, one.subset, interval) for name, interval in intervals.items()]
    if "integrated_brier" in list_measures(reference):
        interval = measure_outcome(reference, draws=settings.draws, seed=settings.seed)["integrated_brier"]
        rows.append(_state("integrated_brier", "no features", "kaplan-meier", ALL.name, interval))
    return rows


def _state(name: str, arm: str, method: str, subset: str, interval: Interval) -> Measurement:
    return Measurement(name=name, model=arm, method=method, subset=subset, interval=interval)


def _compare(found: Sequence[Found], settings: OutcomeSettings) -> list[Comparison]:
    """Harrell's C of every two arms under one method, from one subset."""
    pairs = [(a, b) for a, b in combinations(found, 2) if (a.method, a.subset) == (b.method, b.subset)]
    differences = [
        compare_outcome("harrell_c", b.out_of_fold, a.out_of_fold, draws=settings.draws, seed=settings.seed) for a, b in pairs
    ]
    corrected = correct_holm([difference.p for difference in differences])
    return [
        Comparison(
            name="harrell_c", first=b.arm, second=a.arm, method=a.method, subset=a.subset, difference=difference, corrected=p
        )
        for (a, b), difference, p in zip(pairs, differences, corrected, strict=True)
    ]


def _describe(one: Found) -> dict[str, Any]:
    return {
        "model": one.arm,
        "method": one.method,
        "groups": describe_groups(one.out_of_fold),
        "calibration": describe_calibration(one.out_of_fold),
        "auc": describe_auc(one.out_of_fold),
    }


def _list_rows(one: Found) -> list[dict[str, Any]]:
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
    arms: Sequence[Arm],
    models: Sequence[ModelSpec],
    patients: PooledPatients,
    times: NDArray[np.float64],
    settings: OutcomeSettings,
    gathered: _Gathered,
    out: Path,
) -> str:
    """Fit Cox's elastic net to all patients and store it: of the first model, with the clinical columns where there are any."""
    if "cox" not in settings.methods:
        return ""
    first = gathered.arms[0].name
    arm = next((arm for arm in arms if arm.name == f"{first} + {CLINICAL}"), gathered.arms[0])
    everyone = np.arange(len(patients))
    design, model = fit_frozen(arm, "cox", patients, everyone, settings.seed)
    if not isinstance(model, CoxModel):
        return ""
    risk = model.score(design.encode(arm.features, patients.clinical))
    save_outcome_model(
        OutcomeModel(
            source=models[0].text,
            design=design,
            cox=model,
            cut=float(np.median(risk)),
            times=times,
            crop_mm=settings.crop_mm,
            crop_spacing=gathered.crop_spacing,
            encoder=gathered.encoders.get(first),
        ),
        out / "model",
    )
    return f"Cox's elastic net on {arm.name}, fitted to all {len(patients)} patients"
