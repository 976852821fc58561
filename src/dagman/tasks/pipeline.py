"""What the tasks on a table's items share: inputs -> evaluate -> write -> keep, in one folder that one run holds.

A task plans its splits, scores and measures; it knows neither how features come to be nor how its folder is written.
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
    """What the settings of every task on items hold."""

    @property
    def crop(self) -> CropSpec:
        """Asked of the crops around structures."""

    @property
    def device(self) -> str:
        """As in `choose_device`."""

    @property
    def precision(self) -> str:
        """Of the frozen features: fp32, bf16 or auto."""


@dataclass(frozen=True, kw_only=True)
class ItemRun:
    """What a task is run on, and where its results go."""

    models: Sequence[ModelSpec]
    table: Table
    out: Path
    store: Store | None = None
    cache: str | Path | None = None
    "Folder of feature vectors; None: `features` in `out`."
    notify: Notify | None = None
    "Called with what is being done."


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a task found: rows of predictions.csv, its summary, and how a model is kept once these are written."""

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
    """Gather the inputs of all models, evaluate them, and write the results folder (all but the report).

    command: as command.json names it. embed, cut: whether features and crops are needed. Raises TaskError where another run holds
    the folder or no item is left, and what `evaluate` raises.
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
    """A task's settings as command.json holds them, the crop by the names of its options."""
    values: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        values |= {"crop_mm": value["mm"], "crop_spacing": value["spacing"]} if name == "crop" else {name: value}
    return values
