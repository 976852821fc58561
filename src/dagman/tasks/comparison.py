"""One task for several models, on identical items, crops, splits and draws: each task's own function, asked alike.

What a request holds beyond a task's knowledge is refused, not ignored: a number nobody used must not stand in a record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dagman.errors import TaskError
from dagman.evaluation.results import Results
from dagman.records.names import suggest_name
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.tables.labelled_scans import read_labelled_scans
from dagman.tables.table import read_table
from dagman.tasks.classify.classification import ClassificationSettings, classify_items
from dagman.tasks.cluster.clustering import ClusteringSettings, cluster_structures
from dagman.tasks.finetuning import choose_finetuning
from dagman.tasks.models import ModelSpec
from dagman.tasks.outcome.response import predict_response
from dagman.tasks.outcome.time_to_event import OutcomeSettings, predict_outcome
from dagman.tasks.segment.segmentation import SegmentationSettings, segment_scans

Notify = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest:
    """What is compared, and how; None leaves a value to the task."""

    models: tuple[ModelSpec, ...]
    table: Path
    out: Path
    label: str | None = None
    time: str | None = None
    event: str | None = None
    clinical: tuple[str, ...] | None = None
    labels: str | None = None
    "Structures of a segmentation and their values."
    patient: str = "patient"
    split: str | None = None
    mask_label: int | None = None
    coordinates: str | None = None
    ids: str = "checked"
    methods: tuple[str, ...] | None = None
    folds: int | None = None
    repeats: int | None = None
    shares: tuple[float, ...] | None = None
    per_class: tuple[int, ...] | None = None
    draws: int | None = None
    epochs: int | None = None
    finetuning: str | None = None
    layer_decay: float | None = None
    steps: int | None = None
    crop: CropSpec = FROM_SIZE
    store: Path | None = None
    cache: Path | None = None
    seed: int = 0
    device: str = "auto"


_ALWAYS = ("models", "table", "out", "patient", "mask_label", "ids", "seed", "device")
_ITEMS = (*_ALWAYS, "coordinates", "crop", "store", "cache")
_FINETUNING = ("epochs", "finetuning", "layer_decay")
_SPLITS = ("folds", "repeats", "shares", "per_class", "draws")


def compare_models(task: str, request: ComparisonRequest, *, on_part: Notify | None = None) -> Results:
    """Run a task of TASKS for all models and write the results folder (all but the report).

    Differences are those of the first model to each other one, on the same items. Raises TaskError for an unknown task (the
    nearest is named), for fewer than two models, or for an option that the task does not have, and what the task raises.
    """
    if task not in TASKS:
        raise TaskError(f"there is no task '{task}'", do=suggest_name(task, TASKS))
    if len(request.models) < 2:
        raise TaskError("one model cannot be compared", do=f"Name two or more before the table, or use dagman {task}")
    run, known = TASKS[task]
    idle = [one.name for one in fields(request) if one.name not in known and getattr(request, one.name) != one.default]
    if idle:
        options = ", ".join(option for name in idle for option in _name_options(request, name))
        raise TaskError(f"{options} has no meaning for {task}", do="Leave it out")
    return run(request, on_part)


def _classify(request: ComparisonRequest, notify: Notify | None) -> Results:
    if request.label is None:
        raise TaskError("classify needs a label", do="Give --label COL")
    store, ids = _open_store(request)
    table = read_table(request.table, label=request.label, known_ids=ids, split=request.split or "split", **_read_columns(request))
    settings = ClassificationSettings(**_choose(request, "methods", *_SPLITS, "crop"), **_tune(request))
    return classify_items(request.models, table, request.out, settings, store=store, cache=request.cache, on_part=notify)


def _predict_outcome(request: ComparisonRequest, notify: Notify | None) -> Results:
    if (request.label is None) == (request.time is None and request.event is None):
        raise TaskError("outcome needs a response, or time and event", do="Give --label COL, or --time COL --event COL")
    if request.label and request.methods:
        raise TaskError("a response is predicted by a linear probe", do="Leave --method out, or compare classify")
    store, ids = _open_store(request)
    table = read_table(
        request.table,
        label=request.label,
        time=request.time,
        event=request.event,
        clinical=request.clinical or (),
        known_ids=ids,
        split=request.split or "split",
        **_read_columns(request),
    )
    settings = OutcomeSettings(**_choose(request, "methods", *_SPLITS, "crop"), **_tune(request))
    predict = predict_response if request.label else predict_outcome
    return predict(request.models, table, request.out, settings, store=store, cache=request.cache, on_part=notify)


def _cluster(request: ComparisonRequest, notify: Notify | None) -> Results:
    store, ids = _open_store(request)
    table = read_table(request.table, label=request.label, known_ids=ids, split=None, **_read_columns(request))
    settings = ClusteringSettings(**_choose(request, "crop"))
    return cluster_structures(request.models, table, request.out, settings, store=store, cache=request.cache, on_part=notify)


def _segment(request: ComparisonRequest, notify: Notify | None) -> Results:
    data = read_labelled_scans(
        request.table,
        labels=request.labels,
        mask_label=request.mask_label,
        patient=request.patient,
        split=request.split or "split",
        ids=request.ids,
    )
    settings = SegmentationSettings(**_choose(request, *_SPLITS, "steps"))
    return segment_scans(request.models, data, request.out, settings, on_part=notify)


TASKS: Mapping[str, tuple[Callable[[ComparisonRequest, Notify | None], Results], tuple[str, ...]]] = {
    "classify": (_classify, (*_ITEMS, *_SPLITS, "label", "split", "methods", *_FINETUNING)),
    "outcome": (_predict_outcome, (*_ITEMS, *_SPLITS, "label", "time", "event", "clinical", "split", "methods", *_FINETUNING)),
    "segment": (_segment, (*_ALWAYS, *_SPLITS, "labels", "split", "steps")),
    "cluster": (_cluster, (*_ITEMS, "label")),
}
"""Each task, and the fields of a request that it uses."""


def _open_store(request: ComparisonRequest) -> tuple[Store | None, list[str]]:
    store = Store(request.store) if request.store else None
    return store, [row.id for row in store.rows] if store else []


def _read_columns(request: ComparisonRequest) -> dict[str, Any]:
    return {
        "patient": request.patient,
        "mask_label": request.mask_label,
        "coordinates": request.coordinates or "ras",
        "ids": request.ids,
    }


def _choose(request: ComparisonRequest, *names: str) -> dict[str, Any]:
    """The values given among these fields; seed and device always."""
    given = {name: getattr(request, name) for name in names}
    return {name: value for name, value in given.items() if value is not None} | {"seed": request.seed, "device": request.device}


def _tune(request: ComparisonRequest) -> dict[str, Any]:
    return {"finetuning": choose_finetuning(request.finetuning or "short", epochs=request.epochs, layer_decay=request.layer_decay)}


def _name_options(request: ComparisonRequest, field: str) -> list[str]:
    """The options of the command line that set a field."""
    if field == "crop":
        given = {"--crop-mm": request.crop.mm, "--crop-spacing": request.crop.spacing}
        return [option for option, value in given.items() if value is not None]
    return [{"methods": "--method"}.get(field, "--" + field.replace("_", "-"))]
