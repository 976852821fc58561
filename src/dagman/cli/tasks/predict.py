"""`dagman predict`: a task's model on new scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dagman.cli.scans.options import Dask
from dagman.cli.tasks.task_options import Coordinates, Identified, Ids, KeyPath, PatientsOf
from dagman.tasks.registry import list_keeping

if TYPE_CHECKING:
    from rich.console import Console

    from dagman.tasks.prediction import PredictionSummary

app = typer.Typer(add_completion=False)

_SHOWN = 10
"""Refusals printed; all are in rejected.csv."""


@app.command(epilog="Example: dagman predict tumours/model new-scans --out predicted")
def run_prediction(
    model: Annotated[Path, typer.Argument(help=f"The --out folder of dagman {list_keeping()}, or its model/.")],
    scans: Annotated[list[Path], typer.Argument(help="Scans (files, folders, patterns, @LIST of paths), or one table of items.")],
    out: Annotated[Path, typer.Option(help="Folder of predictions.")],
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average over mirrored windows (segmentation): 8 times the work.")
    ] = False,
    identified: Identified = False,
    clinical: Annotated[
        Path | None, typer.Option(help="Table of the model's clinical columns by patient, where scans are given as files.")
    ] = None,
    patient: Annotated[str, typer.Option(help="The table's column of patients.")] = "patient",
    ids: Ids = "checked",
    mask_label: Annotated[int | None, typer.Option(help="The structure's value in every mask of the table.")] = None,
    coordinates: Coordinates = "ras",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    patients: PatientsOf = None,
    key: KeyPath = None,
    dask: Dask = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Apply a model to scans, one at a time: label maps on their own grids, or scores.

    Writes OUT/predictions.csv (volumes, or scores), for a segmentation OUT/predictions/NAME.nii.gz (and .dcm, a DICOM SEG, where
    the scan came as DICOM), and OUT/rejected.csv. Repeat the command to continue it.
    """
    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.devices import tune_allocator
    from dagman.records.sources import expand_sources
    from dagman.tasks.prediction import PredictionSettings, predict_scans

    tune_allocator()
    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    with follow_parts(console, out) as notify:
        summary = predict_scans(
            model,
            expand_sources(scans),
            out,
            PredictionSettings(
                mirror=mirror,
                identified=identified,
                device="cpu" if dask and device == "auto" else device,
                dask=dask,
                clinical=clinical,
                patients=patients,
                patient=patient,
                ids=ids,
                mask_label=mask_label,
                coordinates=coordinates,
            ),
            on_part=notify,
        )
    if as_json:
        refusals = [{"source": one.source, "reason": one.reason} for one in summary.refused]
        outcome = {
            "out": str(out),
            "task": summary.task,
            "predicted": summary.predicted,
            "notes": [*summary.notes, *filter(None, [summary.identity])],
        }
        typer.echo(json.dumps({**outcome, "refused": len(refusals), "refusals": refusals}))
        return
    _print_summary(console, summary)


def _print_summary(console: Console, summary: PredictionSummary) -> None:
    from dagman.cli.tasks.printing import escape_markup

    for note in summary.notes:
        console.print(f"[dim]·[/] {escape_markup(note)}")
    console.print(f"[bold]{summary.predicted} predicted[/], {len(summary.refused)} refused.")
    for one in summary.refused[:_SHOWN]:
        console.print(f"  [yellow]{escape_markup(one.source)}[/]: {escape_markup(one.reason)}")
    if len(summary.refused) > _SHOWN:
        console.print(f"  and {len(summary.refused) - _SHOWN} more in {escape_markup(str(summary.out / 'rejected.csv'))}")
    console.print(f"written: {summary.out / 'predictions.csv'}", markup=False)
    if summary.identity:
        console.print(summary.identity, markup=False)
