"""The pipeline shared by the tasks on a table's items: gather inputs, evaluate, write results, save a model.

A task only plans splits, scores items and computes measures; this module extracts features and writes the results folder, which
is locked during a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from dagman.errors import TaskError
from dagman.evaluation.results import Results, Summary, refuse_other_results, write_inputs, write_predictions, write_summary
from dagman.records.hashes import hash_file
from dagman.records.lock import hold_lock
from dagman.store.crops import CropSpec
from dagman.store.manifest import Store
from dagman.tables.table import Table
from dagman.tasks.head_models import describe_source
from dagman.tasks.inputs.model_inputs import TaskInputs, gather_inputs
from dagman.tasks.models import ModelSpec

Notify = Callable[[str], None]


class ItemSettings(Protocol):
    """Settings that every task on items has."""

    @property
    def crop(self) -> CropSpec:
        """The requested size and spacing of crops around structures."""

    @property
    def device(self) -> str:
        """Name of the device, as in `choose_device`."""

    @property
    def precision(self) -> str:
        """Precision of the frozen features: fp32, bf16 or auto."""


@dataclass(frozen=True, kw_only=True)
class ItemRun:
    """The inputs of a task's run, and the folder for its results."""

    models: Sequence[ModelSpec]
    table: Table
    out: Path
    store: Store | None = None
    cache: str | Path | None = None
    "Folder that caches feature vectors; None: `features` in `out`."
    notify: Notify | None = None
    "Called with a description of each step of the work."


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of a task: rows of predictions.csv, the summary, and a function that saves a model after these are written."""

    rows: Sequence[dict[str, Any]]
    summary: Summary
    keep: Callable[[], None] | None = None


def run_pipeline(
    command: str,
    run: ItemRun,
    settings: ItemSettings,
    evaluate: Callable[[TaskInputs, Notify], Evaluation],
    *,
    embed: bool = True,
    cut: bool = False,
) -> Results:
    """Gather the inputs of all models, evaluate them, and write the results folder except for the report.

    Args:
        command: Name of the command in command.json.
        run: The inputs and the folder.
        settings: Settings of the task.
        evaluate: Computes the evaluation from the gathered inputs.
        embed: Whether features are needed.
        cut: Whether crops are needed.

    Raises:
        TaskError: Another run has locked the folder, the folder holds other results, or no item can be used.
    """
    notify = run.notify or (lambda text: None)
    sources = [describe_source(spec) for spec in run.models]
    about = {"models": sources, "table": hash_file(run.table.path), "columns": dict(run.table.roles)}
    with hold_lock(run.out, TaskError):
        refuse_other_results(run.out, command, settings=_list_settings(settings), inputs=about)
        inputs = gather_inputs(
            run.models,
            run.table,
            embed=embed,
            cut=cut,
            store=run.store,
            crop=settings.crop,
            cache=run.cache or run.out / "features",
            device=settings.device,
            precision=settings.precision,
            notify=notify,
        )
        done = evaluate(inputs, notify)
        write_predictions(run.out, done.rows)
        write_summary(run.out, done.summary)
        write_inputs(run.out, command, settings=_list_settings(settings), inputs={**about, "items": len(inputs.table)})
        if done.keep is not None:
            notify("the final model")
            done.keep()
    return Results(run.out)


def _list_settings(settings: Any) -> dict[str, Any]:
    """List a task's settings for command.json, with the crop as the options --crop-mm and --crop-spacing."""
    values: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        values |= {"crop_mm": value["mm"], "crop_spacing": value["spacing"]} if name == "crop" else {name: value}
    return values
