"""Task 2 of the paper: segment structures by a decoder on the encoder, full- and few-shot, by patient, with intervals.

Whole scans are tested, on their own grids. Results are saved in a journal, so that the same command resumes after an interruption.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dagman.encoder.encoder import Encoder
from dagman.errors import SettingsError, TaskError
from dagman.evaluation.results import (
    Comparison,
    Endpoint,
    Results,
    Summary,
    choose_endpoint,
    correct_comparisons,
    refuse_other_results,
    write_inputs,
    write_predictions,
    write_summary,
)
from dagman.evaluation.segmentation_scores import MEASURES, METHOD, agree_volumes, average_items, rank_items, summarize_scores
from dagman.evaluation.splits import Protocol, Split, find_largest_count, list_subsets, name_overlap, plan_splits, write_splits
from dagman.evaluation.statistics import bootstrap_difference
from dagman.notes import Note, inform, warn
from dagman.records.counts import count_noun
from dagman.records.csv_file import write_csv
from dagman.records.hashes import hash_file
from dagman.records.lock import hold_lock
from dagman.scans.label_files import describe_identity
from dagman.tables.items import note_cut
from dagman.tables.labelled_scans import LabelledScans
from dagman.tables.structures import Structure
from dagman.tasks.head_models import describe_source
from dagman.tasks.models import ModelSpec, load_network, name_models
from dagman.tasks.segment.cases import Case, RefusedScan, find_structures, prepare_cases
from dagman.tasks.segment.examples import write_examples
from dagman.tasks.segment.folds import Candidate, FoldRunner
from dagman.tasks.segment.model import adapt_encoder, load_segmenting
from dagman.tasks.segment.training import WEIGHT_DECAY, Fitting
from dagman.tasks.segment.unet import STRIDE

STEPS_CPU, STEPS_GPU = 250, 3000
"""Default number of optimiser steps of a training."""
_PREPARED = ".prepared-"
LEAST_SPACING, MOST_SPACING = 0.1, 20.0
"""Limits of the spacing in mm; beyond these, scans have hardly any voxels, or do not fit in memory."""
RATE_SHORT, RATE_LONG, LONG = 3e-3, 1e-3, 1000
"""Learning rates of short and long trainings, and the steps of a long one. AdamW changes a weight by about the learning rate per
step, so a hundred steps at 1e-3 are too few for the decoder to learn."""


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings(Protocol):
    """Settings of a segmentation and its evaluation; each share or number of labelled patients is a separate training."""

    steps: int | None = None
    "Optimiser steps of a training; None: 250 on a CPU, 3000 on a GPU. [ours]"
    batch: int = 2
    "Crops per step. [ours; SwinUNETR 1 to 2]"
    side: int | None = None
    "Side of a crop in voxels; None: the encoder's view, or less if all scans are smaller."
    rate: float | None = None
    "Peak learning rate; None: 3e-3 for fewer than 1,000 steps, otherwise 1e-3. [ours; docs/experiments.md]"
    layer_decay: float = 1.0
    "Factor of the learning rate from each layer to the one below, for all models; 1 for the same rate in all layers. [ours]"
    spacing: float | None = None
    "Voxel size in mm; None: the encoder's own."
    mirror: bool = False
    "Whether to mirror crops in training, and to average over mirrored windows in testing."
    tolerance: float = 2.0
    "Tolerance of the surface Dice in mm. [ours]"
    measures: tuple[str, ...] = MEASURES
    "Measures of each structure; all except Dice take time."
    keep: bool = True
    "Whether to save a model in `out/model`, trained on all scans or on the training part of a given split."
    identified: bool = False
    "Whether DICOM SEGs contain the patient's identity from the source scans instead of a pseudonym."
    device: str = "auto"
    notes: tuple[str, ...] = ()
    "The user's own sentences for the report, such as who drew the labels."

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            if value is not None and value < 1:
                raise SettingsError(f"--{name} is {value}", do="Give 1 or more")
        if self.side is not None and (self.side < STRIDE or self.side % STRIDE):
            raise SettingsError(f"--side is {self.side} voxels", do=f"Give a multiple of {STRIDE}")
        if not 0 < self.layer_decay <= 1:
            raise SettingsError(f"--layer-decay is {self.layer_decay:g}", do="Give more than 0, at most 1")
        if not 0 <= self.tolerance < math.inf:
            raise SettingsError(f"--tolerance is {self.tolerance:g} mm", do="Give 0 or more")
        if self.spacing is not None and not LEAST_SPACING <= self.spacing <= MOST_SPACING:
            do = f"Give between {LEAST_SPACING:g} and {MOST_SPACING:g}"
            raise SettingsError(f"--spacing is {self.spacing:g} mm", do=do)


def segment_scans(
    models: Sequence[ModelSpec],
    data: LabelledScans,
    out: str | Path,
    settings: SegmentationSettings | None = None,
    *,
    on_part: Callable[[str], None] | None = None,
) -> Results:
    """Train and test each model on labelled scans, and write the results folder, except for the report.

    Several models are compared on the same scans, splits and draws. With `settings.keep`, the first model, trained on all scans or
    on the training part of a given split, is saved in `out/model`. Unusable scans are listed in `out/rejected.csv`.

    Args:
        models: The models to compare.
        data: Labelled scans from `read_labelled_scans`.
        out: Folder for the results.
        settings: Settings of the segmentation.
        on_part: Called with a description of each step of the work.

    Raises:
        TaskError: The scans cannot be split, or no scan can be used.
        SettingsError: A setting does not fit.
    """
    settings, out = settings or SegmentationSettings(), Path(out)
    settings = replace(settings, repeats=settings.count_repeats(trains=True))
    notify = on_part or (lambda text: None)
    # Refuses impossible splits, and to overwrite other results, before hours of reading scans.
    _plan(data, [item.index for item in data.items], settings)
    about = {"models": [describe_source(spec) for spec in models], "table": hash_file(data.path)}
    asked = {name: value for name, value in asdict(settings).items() if name not in ("steps", "rate") or value is not None}
    refuse_other_results(out, "segment", settings=asked, inputs=about)
    encoders = [load_segmenting(load_network, spec, device=settings.device) for spec in models]
    structures = data.structures or tuple(find_structures(data.items))
    with hold_lock(out, TaskError), _hold_prepared(out) as folder:
        prepared, refused = _prepare_all(encoders, data, structures, settings, folder, notify)
        candidates = tuple(
            Candidate(name=name, encoder=_fit_side(encoder, cases, settings), cases=tuple(cases))
            for name, encoder, cases in zip(name_models(models), encoders, prepared, strict=True)
        )
        runner, subset_notes = _plan_runs(candidates, data, structures, settings, out, notify)
        endpoint = choose_endpoint(
            settings.primary,
            measures=["dice"],
            models=[candidate.name for candidate in candidates],
            methods=[METHOD],
            subsets=[subset.name for subset in runner.subsets],
        )
        rows = pd.DataFrame(runner.run())
        notify("intervals")
        shown = runner.choose_shown(rows)
        first = shown[shown["repeat"] == 0]
        examples = write_examples(out, candidates[0].cases, first, structures, rank_items(first), candidates[0].encoder)
    cut = note_cut({case.item.name: case.cut for case in candidates[0].cases})
    notes = [*map(inform, settings.notes), *data.notes, *_note_refused(refused), *map(warn, [*cut, *subset_notes])]
    notes += _note_encoders(encoders, candidates, runner.splits)
    notes += map(inform, [*_note_runs(runner, settings), *_note_missed(rows), *runner.remarks])
    if note_segs := describe_identity(out / "predictions", identified=settings.identified):
        notes.append(inform(note_segs))
    _write_rejected(out, refused)
    write_predictions(out, rows)
    summary = _summarize(runner, rows, settings, endpoint, notes, examples)
    write_summary(out, summary)
    write_inputs(
        out,
        "segment",
        # Record the resolved values instead of None, for the description of the methods.
        settings=asdict(replace(settings, steps=runner.fitting.steps, rate=runner.fitting.rate)),
        inputs={**about, "scans": len(runner.patients)},
    )
    return Results(out)


def _plan_runs(
    candidates: tuple[Candidate, ...],
    data: LabelledScans,
    structures: tuple[Structure, ...],
    settings: SegmentationSettings,
    out: Path,
    notify: Callable[[str], None],
) -> tuple[FoldRunner, list[str]]:
    """Plan all trainings and write their splits; returns the runner, and notes on subsets that are impossible."""
    cases = candidates[0].cases
    splits = _plan(data, [case.item.index for case in cases], settings)
    patients = np.array([case.item.patient for case in cases], dtype=str)
    largest = find_largest_count(splits, np.zeros(len(cases)), patients)
    subsets, notes = list_subsets(settings.shares, settings.per_class, settings.draws, largest)
    write_splits(out / "splits.csv", splits, [case.item.name for case in cases], patients)
    runner = FoldRunner(
        candidates=candidates,
        structures=structures,
        splits=splits,
        subsets=subsets,
        fitting=_choose_fitting(candidates, settings),
        tolerance=settings.tolerance,
        out=out,
        notify=notify,
        given=data.splits is not None,
        keep=settings.keep,
        measures=settings.measures,
        identified=settings.identified,
    )
    return runner, notes


def _summarize(
    runner: FoldRunner,
    rows: pd.DataFrame,
    settings: SegmentationSettings,
    endpoint: Endpoint | None,
    notes: Sequence[Note],
    examples: dict[str, dict[str, object]],
) -> Summary:
    structures, shown = runner.structures, runner.choose_shown(rows)
    measured = summarize_scores(rows, structures, measures=settings.measures, resamples=settings.resamples, seed=settings.seed)
    return Summary(
        task="segment",
        classes=tuple(one.name for one in structures),
        measurements=tuple(measured),
        comparisons=correct_comparisons(_compare(rows, settings), endpoint),
        notes=tuple(notes),
        extra={
            "structures": [asdict(one) for one in structures],
            "patients": len(set(runner.patients.tolist())),
            "scans": len(runner.patients),
            "tolerance_mm": settings.tolerance,
            "agreement_ml": {one.name: agree_volumes(shown[shown["label"] == one.name]) for one in structures},
            "examples": examples,
            "shown": {"model": runner.candidates[0].name, "subset": runner.subsets[-1].name},
        },
    )


@contextmanager
def _hold_prepared(out: Path) -> Iterator[Path]:
    """Make a temporary folder for prepared scans; also removes folders that an earlier, killed run left behind."""
    for left in out.glob(f"{_PREPARED}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREPARED, dir=out, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _plan(data: LabelledScans, indices: Sequence[int], settings: SegmentationSettings) -> list[Split]:
    return plan_splits(
        [data.items[index].patient for index in indices],
        folds=settings.folds,
        repeats=settings.count_repeats(),
        seed=settings.seed,
        given=None if data.splits is None else data.splits[list(indices)],
    )


def _prepare_all(
    encoders: Sequence[Encoder],
    data: LabelledScans,
    structures: Sequence[Structure],
    settings: SegmentationSettings,
    folder: Path,
    notify: Callable[[str], None],
) -> tuple[list[list[Case]], list[RefusedScan]]:
    """Prepare the scans for each encoder, once for those with equal preparation; scans that any encoder rejects are skipped."""
    found: dict[object, list[Case]] = {}
    refused: dict[str, RefusedScan] = {}
    keys = []
    for encoder in encoders:
        adapted = adapt_encoder(encoder, side=encoder.config.view, spacing=settings.spacing or encoder.config.spacing)
        key = (adapted.preparation, adapted.config.modalities)
        keys.append(key)
        if key not in found:
            part = folder / str(len(found))
            part.mkdir()
            found[key], rejected = prepare_cases(adapted, data.items, structures, part, seed=settings.seed, notify=notify)
            refused |= {scan.item.name: scan for scan in rejected}
    left = {key: [case for case in cases if case.item.name not in refused] for key, cases in found.items()}
    if not all(left.values()):
        raise TaskError("no scan can be used by all models", where=data.path, do="Compare models of the same modality")
    return [left[key] for key in keys], list(refused.values())


def _fit_side(encoder: Encoder, cases: Sequence[Case], settings: SegmentationSettings) -> Encoder:
    """Adapt the encoder with its own view as side, or the smallest multiple of 32 that fits every scan if that is less."""
    longest = max(max(case.voxels.shape) for case in cases)
    side = settings.side or min(encoder.config.view, -(-longest // STRIDE) * STRIDE)
    return adapt_encoder(encoder, side=side, spacing=settings.spacing or encoder.config.spacing)


def _choose_fitting(candidates: Sequence[Candidate], settings: SegmentationSettings) -> Fitting:
    steps = settings.steps or (STEPS_CPU if candidates[0].encoder.device == "cpu" else STEPS_GPU)
    return Fitting(
        steps=steps,
        batch=settings.batch,
        rate=settings.rate or (RATE_SHORT if steps < LONG else RATE_LONG),
        decay=settings.layer_decay,
        mirror=settings.mirror,
        seed=settings.seed,
    )


def _compare(rows: pd.DataFrame, settings: SegmentationSettings) -> list[Comparison]:
    """Compare the mean Dice of every two models on the same scans and subset, the earlier one minus the other."""
    found = []
    for subset, group in rows.groupby("subset", sort=False):
        means = {model: average_items(part).set_index("item") for model, part in group.groupby("model", sort=False)}
        for first, second in itertools.combinations(means, 2):
            a, b = means[first], means[second].loc[means[first].index]
            known = a["dice"].notna() & b["dice"].notna()
            difference = bootstrap_difference(
                _mean_of_second,
                np.zeros(int(known.sum())),
                a["dice"][known],
                b["dice"][known],
                patients=a["patient"][known],
                draws=settings.resamples,
                seed=settings.seed,
            )
            found.append(
                Comparison(
                    name="dice", first=str(first), second=str(second), method=METHOD, subset=str(subset), difference=difference
                )
            )
    return found


def _mean_of_second(labels: np.ndarray, values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _note_refused(refused: Sequence[RefusedScan]) -> list[Note]:
    if not refused:
        return []
    count = count_noun(len(refused), "scan was", "scans were")
    return [warn(f"{count} rejected (all are in rejected.csv); the first: {refused[0].reason}")]


def _note_encoders(encoders: Sequence[Encoder], candidates: Sequence[Candidate], splits: Sequence[Split]) -> list[Note]:
    notes = []
    tested = sorted({int(index) for split in splits for index in split.test})
    for encoder, candidate in zip(encoders, candidates, strict=True):
        used, own = candidate.encoder.config.spacing, encoder.config.spacing
        if used != own and not encoder.config.fresh:
            text = (
                f"{candidate.name}: scans are prepared at {used:g} mm, but the encoder was trained at {own:g} mm: everything "
                f"appears at another scale than in training, so its features may be less useful"
            )
            notes.append(inform(text))
        if line := candidate.encoder.describe_positions(candidate.encoder.config.view):
            notes.append(inform(f"{candidate.name}: {line}"))
        names, hashes = zip(*((candidate.cases[i].item.name, candidate.cases[i].content_hash) for i in tested), strict=True)
        overlap = name_overlap(names, hashes, encoder.config.scans_seen)
        if overlap:
            notes.append(warn(f"{candidate.name}: {overlap}"))
    return notes


def _note_runs(runner: FoldRunner, settings: SegmentationSettings) -> list[str]:
    first, fitting = runner.candidates[0].encoder, runner.fitting
    notes = [
        f"{count_noun(runner.total, 'training')} of {count_noun(fitting.steps, 'step')}, {count_noun(fitting.batch, 'crop')} of "
        f"{first.config.view}^3 voxels at {first.config.spacing:g} mm each ({first.precision} on {first.device.partition(':')[0]})",
        f"surface Dice (nsd) has a tolerance of {settings.tolerance:g} mm; all measures are computed on the grids of the masks",
    ]
    rate = "one learning rate for all layers" if fitting.decay == 1 else f"layer-wise learning rate decay of {fitting.decay:g}"
    notes.append(f"{rate} for every model, peak {fitting.rate:g} (AdamW, weight decay {WEIGHT_DECAY:g}, cosine)")
    if runner.keep:
        trained = "the training set of the given split" if runner.given else f"all {len(runner.patients)} scans"
        notes.append(f"model/ holds {runner.candidates[0].name}, trained on {trained}")
    if settings.mirror:
        notes.append("crops were mirrored in training and testing: not suitable for structures that differ only by side")
    return notes


def _note_missed(rows: pd.DataFrame) -> list[str]:
    missed = int(np.isinf(rows["hd95_mm"].astype(float)).sum())
    if not missed:
        return []
    count = count_noun(missed, f"of {len(rows)} tested structures was", f"of {len(rows)} tested structures were")
    return [
        f"{count} missed entirely, or predicted where there is none: their Dice and surface Dice are 0, and HD95 is the median "
        f"of the others"
    ]


def _write_rejected(out: Path, refused: Sequence[RefusedScan]) -> None:
    rows = [(one.item.name, str(one.item.scan), one.reason) for one in refused]
    write_csv(out / "rejected.csv", ["item", "scan", "reason"], rows)
