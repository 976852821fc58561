"""Registry of tasks, for the command line, studies, reports and `dagman predict`.

Parts that are slow to import, or that belong to a higher layer, are given as "module:attribute" and imported on use. This keeps
`dagman --help` fast, and no task imports another. Code outside dagman may register the object itself.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class KeptModel:
    """How `dagman predict` recognises and applies the model that a task saves in OUT/model."""

    file: str
    "Name of a file that only this task's model folders contain, such as classifier.json."
    apply: Any
    'A `dagman.tasks.prediction.Apply`, or its "module:attribute".'


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task. Parts of type Any are objects or their "module:attribute"."""

    name: str
    "Name of its command, and value of `task` in a study."
    help: str
    "Its line in `dagman --help`."
    command: Any
    "Typer app with one command, which builds the task's settings and runs it."
    page: Any
    "Function that writes report.html for one model (Results -> Path); several models share the page of a comparison."
    methods: Any = None
    "Function that describes the methods in sentences (Results, settings -> list of str); None: only splits and statistics."
    model: KeptModel | None = None
    "The saved model; None if the task saves none."
    kinds: tuple[str, ...] = ()
    "Values of `task` in its metrics.json; empty: the task's name."


TASKS: dict[str, Task] = {}
"""All tasks by name, in the order of `dagman --help`."""


def register_task(task: Task) -> Task:
    """Add a task to the registry.

    Raises:
        ValueError: The name is already registered.
    """
    if task.name in TASKS:
        raise ValueError(f"the task {task.name!r} is already registered")
    TASKS[task.name] = task
    return task


def find_task(kind: str) -> Task | None:
    """Find the task whose metrics.json has the given value of `task`; None if it is not registered."""
    return next((task for task in TASKS.values() if kind in (task.kinds or (task.name,))), None)


def list_keeping() -> str:
    """Join the names of the tasks that save a model, for a sentence."""
    *others, last = (task.name for task in TASKS.values() if task.model is not None)
    return f"{', '.join(others)} or {last}"


def load_part(part: Any) -> Any:
    """Return a part of a task, importing it if it is given as "module:attribute"."""
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
