"""Predict survival out of fold: imputation, scales, penalty, cut-off and baseline are all fitted to training patients only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dagman.encoder.encoder import Encoder
from dagman.errors import TaskError
from dagman.evaluation.outcome_metrics import OutOfFold
from dagman.evaluation.splits import Split, Subset, draw_subset
from dagman.evaluation.survival import censoring_survival, comparable_pairs, kaplan_meier
from dagman.randomness import address
from dagman.records.counts import count_noun
from dagman.tables.clinical import list_categorical
from dagman.tables.patients import PooledPatients
from dagman.tasks.finetuning import FinetunedModel, FinetuneSettings, LinearHead, finetune, hold_out
from dagman.tasks.inputs.item_crops import ItemCrop
from dagman.tasks.outcome.cox import CoxModel, anchor_risk, fit_cox, measure_efron_loss
from dagman.tasks.survival_models import Design, Forest, fit_design, fit_forest

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

METHODS = ("cox", "forest", "finetune")
LEAST_EVENTS = 2
"""Minimum number of events in a training set."""

_STEPS = 2
"""Minimum number of fine-tuning steps per epoch: batches have half of the patients, up to 40."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arm:
    """The inputs of a model: features of the image, clinical columns, or both, and the encoder and crops for fine-tuning."""

    name: str
    features: Floats | None = field(default=None, repr=False)
    "n p, the mean over a patient's items; None: no image."
    stage_ends: tuple[int, ...] = ()
    "Numbers of leading features that a probe may be restricted to."
    clinical: bool = False
    encoder: Encoder | None = None
    crops: tuple[ItemCrop, ...] = field(default=(), repr=False)
    "Crop of each item, in the order that `PooledPatients.members` refers to."

    def can(self, method: str) -> bool:
        """Whether a method supports these inputs; fine-tuning needs a network, and uses only the image."""
        return method != "finetune" or (self.encoder is not None and not self.clinical)


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedRisk:
    """A fine-tuned encoder with a baseline hazard; the risk of a patient is the highest risk of the lesions."""

    tuned: FinetunedModel
    baseline: CoxModel


def stratify_patients(patients: PooledPatients, folds: int) -> NDArray[np.int64] | None:
    """Return strata for splits, which are the events; None if there are fewer censored patients than folds.

    Raises:
        TaskError: Fewer patients had the event than there are folds.
    """
    events = int(patients.events.sum())
    if events < folds:
        do = f"Use --folds {events}" if events > 1 else "Wait for more follow-up"
        raise TaskError(f"{count_noun(events, 'patient')} had the event, fewer than {folds} folds", do=do)
    return patients.events.astype(np.int64) if len(patients) - events >= folds else None


def refuse_incomparable(patients: PooledPatients, splits: Sequence[Split]) -> None:
    """Refuse splits without comparable pairs of patients in any test fold, for which every concordance would be undefined.

    Raises:
        TaskError: There are no comparable pairs.
    """
    times, events = patients.times, patients.events
    if any(comparable_pairs(times[split.test], events[split.test], np.zeros(len(split.test)))[0].any() for split in splits):
        return
    tested = np.unique(times[np.concatenate([split.test for split in splits])])
    if len(tested) == 1:
        what, do = f"all tested times are equal ({tested[0]:g})", "Check the column of times, or wait for more follow-up"
    else:
        what = "no test fold has an event before another patient's time"
        do = "Use fewer folds, more patients, or longer follow-up"
    raise TaskError(f"{what}: no two patients can be compared", do=do)


def predict_out_of_fold(
    arm: Arm,
    method: str,
    patients: PooledPatients,
    splits: Sequence[Split],
    times: Floats,
    *,
    subset: Subset | None = None,
    finetuning: FinetuneSettings | None = None,
    seed: int = 0,
    on_split: Callable[[], None] | None = None,
) -> OutOfFold:
    """Predict every tested patient out of fold, for one arm and one of METHODS, with one column per repeat and draw.

    The cut-off between low and high risk is the median risk of the training patients.

    Raises:
        TaskError: A training set has too few events.
    """
    subset = subset or Subset(name="100%", share=1.0)
    found = _make_blank(patients, times, subset.draws * (1 + max(split.repeat for split in splits)))
    for split in splits:
        for draw in range(subset.draws):
            train = draw_subset(
                split,
                patients.events.astype(np.int64),
                np.array(patients.names),
                share=subset.share,
                per_class=subset.per_class,
                seed=seed,
                draw=draw,
                classes=("censored", "event"),
            )
            draw_seed = address(seed, "outcome", split.repeat, split.fold, draw) % 2**31
            model = _fit(arm, method, patients, train, finetuning, draw_seed)
            risk, survival = _predict(model, arm, patients, split.test, times)
            own, _ = _predict(model, arm, patients, train, times[:0])
            cells = split.test, split.repeat * subset.draws + draw
            found.fold[cells] = split.fold
            found.risk[cells] = risk
            found.high[cells] = risk > np.median(own)
            found.survival[cells] = survival
            found.uncensored[cells] = censoring_survival(
                patients.times[split.train], patients.events[split.train], patients.times[split.test]
            )
            if on_split:
                on_split()
    return _keep_tested(found)


def predict_without_features(patients: PooledPatients, splits: Sequence[Split], times: Floats) -> OutOfFold:
    """Predict the training patients' Kaplan-Meier curve for everyone, as the baseline of survival predictions."""
    found = _make_blank(patients, times, 1 + max(split.repeat for split in splits))
    for split in splits:
        curve = kaplan_meier(patients.times[split.train], patients.events[split.train])
        found.fold[split.test, split.repeat] = split.fold
        found.survival[split.test, split.repeat] = curve.at(times)
    return _keep_tested(found)


def fit_frozen(arm: Arm, method: str, patients: PooledPatients, train: Indices, seed: int) -> tuple[Design, CoxModel | Forest]:
    """Fit a design and a model on frozen features to the training patients."""
    kept = [patients.clinical[row] for row in train]
    features = None if arm.features is None else arm.features[train]
    # Which columns are categorical must not depend on the training patients, so it is taken from the whole table.
    design = fit_design(features, kept, clinical=arm.clinical, categorical=list_categorical(patients.clinical))
    numbers, time, event = design.encode(features, kept), patients.times[train], patients.events[train]
    if method == "forest":
        return design, fit_forest(numbers, time, event, seed=seed)
    return design, fit_cox(numbers, time, event, np.array(patients.names)[train], seed=seed)


def tune_risk(arm: Arm, patients: PooledPatients, train: Indices, settings: FinetuneSettings | None, seed: int) -> TunedRisk:
    """Fine-tune an arm's encoder with Cox's loss (Efron's ties) from the head of the frozen fit, stopping by an inner split.

    Every lesion has the time and event of its patient as target.
    """
    if arm.encoder is None:
        raise TaskError(f"{arm.name} has no weights to fine-tune", do="Remove finetune from --method")
    names, strata = np.array(patients.names), patients.events.astype(np.int64)
    fit, stop = hold_out(names, strata, train, seed=seed)
    if not patients.events[stop].any():
        fit, stop = train, train[:0]
    targets = np.zeros((len(arm.crops), 2), dtype=np.float32)
    for row, members in enumerate(patients.members):
        targets[members] = patients.times[row], patients.events[row]
    tuned = finetune(
        arm.encoder,
        arm.crops,
        targets,
        loss=_measure_batch_loss,
        outputs=1,
        train=patients.list_members(fit),
        val=patients.list_members(stop),
        start=_start_head(arm, patients, fit, seed),
        # The loss compares pairs within a batch, so batches must not be small.
        settings=replace(settings or FinetuneSettings(), least_steps=_STEPS),
        seed=seed,
    )
    risk = _score_lesions(tuned, arm, patients, train)
    return TunedRisk(tuned=tuned, baseline=anchor_risk(risk, patients.times[train], patients.events[train]))


def _fit(
    arm: Arm, method: str, patients: PooledPatients, train: Indices, settings: FinetuneSettings | None, seed: int
) -> tuple[Design, CoxModel | Forest] | TunedRisk:
    events = int(patients.events[train].sum())
    if events < LEAST_EVENTS:
        do = "Use fewer folds, larger shares, or more patients per class"
        raise TaskError(f"a training set of {count_noun(len(train), 'patient')} has {count_noun(events, 'event')}", do=do)
    if method == "finetune":
        return tune_risk(arm, patients, train, settings, seed)
    return fit_frozen(arm, method, patients, train, seed)


def _predict(
    model: tuple[Design, CoxModel | Forest] | TunedRisk, arm: Arm, patients: PooledPatients, rows: Indices, times: Floats
) -> tuple[Floats, Floats]:
    """Predict risk (n) and survival (n T) of the patients in `rows`."""
    if isinstance(model, TunedRisk):
        numbers = _score_lesions(model.tuned, arm, patients, rows)[:, None]
        return model.baseline.score(numbers), model.baseline.survive(numbers, times)
    design, fitted = model
    features = None if arm.features is None else arm.features[rows]
    numbers = design.encode(features, [patients.clinical[row] for row in rows])
    return fitted.score(numbers), fitted.survive(numbers, times)


def _score_lesions(tuned: FinetunedModel, arm: Arm, patients: PooledPatients, rows: Indices) -> Floats:
    return np.array([tuned.predict([arm.crops[place] for place in patients.members[row]]).max() for row in rows])


def _start_head(arm: Arm, patients: PooledPatients, fit: Indices, seed: int) -> LinearHead | None:
    """Convert the frozen elastic net to a head, with weights on standardised features instead of components."""
    if arm.features is None:
        return None
    design, model = fit_frozen(Arm(name=arm.name, features=arm.features), "cox", patients, fit, seed)
    if design.projection is None or not isinstance(model, CoxModel):
        return None
    held = design.projection
    return LinearHead(
        mean=held.mean.astype(np.float32),
        scale=held.scale.astype(np.float32),
        weights=(held.axes @ model.weights)[None].astype(np.float32),
        bias=np.zeros(1, dtype=np.float32),
    )


def _measure_batch_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return measure_efron_loss(outputs[:, 0], targets[:, 0], targets[:, 1].to(torch.bool))


def _make_blank(patients: PooledPatients, times: Floats, repeats: int) -> OutOfFold:
    count = len(patients)
    return OutOfFold(
        patients=np.array(patients.names),
        time=patients.times,
        event=patients.events,
        fold=np.full((count, repeats), -1, dtype=np.int64),
        risk=np.zeros((count, repeats)),
        high=np.zeros((count, repeats), dtype=bool),
        uncensored=np.ones((count, repeats)),
        times=times,
        survival=np.ones((count, repeats, len(times))),
    )


def _keep_tested(found: OutOfFold) -> OutOfFold:
    """Remove patients that were not tested, as is the case with a given split."""
    rows = np.flatnonzero((found.fold >= 0).all(axis=1))
    return OutOfFold(
        patients=found.patients[rows],
        time=found.time[rows],
        event=found.event[rows],
        fold=found.fold[rows],
        risk=found.risk[rows],
        high=found.high[rows],
        uncensored=found.uncensored[rows],
        times=found.times,
        survival=found.survival[rows],
    )
