"""The tasks by name: what the command line, a study, the pages and `dagman predict` need to know of each.

A part that is heavy to import, or lies above this package, is named as "module:attribute" and imported when it is used:
`dagman --help` stays quick, and no task is imported for another's sake. In code of one's own the part itself may stand there.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class KeptModel:
    """How `dagman predict` knows and applies the model that a task leaves in OUT/model."""

    file: str
    "A file that such a folder holds, and no other task's: classifier.json."
    apply: Any
    "A `dagman.tasks.prediction.Apply`, or its name."


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. Its command builds its settings and runs it, so that both are checked by their types; it is read by name here."""

    name: str
    "Of its command, and of `task` in a study."
    help: str
    "Its line in `dagman --help`."
    command: Any
    "A Typer app with one command, or its name."
    page: Any
    "Writes report.html of one model (Results -> Path), or its name; several models have the page of a comparison."
    methods: Any = None
    "What was done, in sentences to quote (Results, settings -> list of str), or its name; None: splits and statistics alone."
    model: KeptModel | None = None
    "None: the task keeps no model."
    kinds: tuple[str, ...] = ()
    "What its results are called in metrics.json; the task's own name where there are no kinds."


TASKS: dict[str, Task] = {}
"""Every task by its name, in the order of `dagman --help`."""


def register_task(task: Task) -> Task:
    """Add a task; raises ValueError where its name is taken."""
    if task.name in TASKS:
        raise ValueError(f"the task {task.name!r} is already registered")
    TASKS[task.name] = task
    return task


def find_task(kind: str) -> Task | None:
    """The task whose results metrics.json calls so; None where it is not registered."""
    return next((task for task in TASKS.values() if kind in (task.kinds or (task.name,))), None)


def list_keeping() -> str:
    """The names of the tasks that keep a model, for a sentence."""
    *others, last = (task.name for task in TASKS.values() if task.model is not None)
    return f"{', '.join(others)} or {last}"


def load_part(part: Any) -> Any:
    """A part of a task: imported where it is given as "module:attribute"."""
    if not isinstance(part, str):
        return part
    module, _, name = part.partition(":")
    return getattr(importlib.import_module(module), name)


register_task(
    Task(
        name="classify",
        help="Classify the items of a table: linear probe, k-NN, fine-tuning.",
        command="dagman.cli.tasks.classify:app",
        page="dagman.reports.tasks.classification:write_classification_report",
        methods="dagman.reports.methods:state_classification",
        model=KeptModel(file="classifier.json", apply="dagman.tasks.classify.prediction:apply_classifier"),
    )
)
register_task(
    Task(
        name="regress",
        help="Predict a number for the items of a table: ridge probe, fine-tuning.",
        command="dagman.cli.tasks.regress:app",
        page="dagman.reports.tasks.regression:write_regression_report",
        methods="dagman.reports.methods:state_regression",
        model=KeptModel(file="regression.json", apply="dagman.tasks.regress.prediction:apply_regression"),
    )
)
register_task(
    Task(
        name="outcome",
        help="Predict survival (time and event), or a response.",
        command="dagman.cli.tasks.outcome:app",
        page="dagman.reports.tasks.outcome:write_outcome_report",
        methods="dagman.reports.methods:state_outcome",
        model=KeptModel(file="outcome.json", apply="dagman.tasks.outcome.prediction:apply_outcome"),
        kinds=("outcome", "response"),
    )
)
register_task(
    Task(
        name="segment",
        help="Train and evaluate a segmentation network.",
        command="dagman.cli.tasks.segment:app",
        page="dagman.reports.tasks.segmentation:write_segmentation_report",
        methods="dagman.reports.methods:state_segmentation",
        model=KeptModel(file="segmentation.json", apply="dagman.tasks.segment.prediction:apply_segmentation"),
    )
)
register_task(
    Task(
        name="cluster",
        help="Cluster structures by their features, and map them.",
        command="dagman.cli.tasks.cluster:app",
        page="dagman.reports.tasks.clustering:write_clustering_report",
        methods="dagman.reports.methods:state_clustering",
    )
)
