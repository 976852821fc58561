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
    scans: Annotated[
        list[Path], typer.Argument(help="Scans (files, folders, glob patterns, or @LIST, a file of paths), or one table of items.")
    ],
    out: Annotated[Path, typer.Option(help="Output folder.")],
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Test-time augmentation by mirroring (segmentation): 8 times the computation.")
    ] = False,
    identified: Identified = False,
    clinical: Annotated[
        Path | None, typer.Option(help="Table with the model's clinical columns per patient, if scans are given as files.")
    ] = None,
    patient: Annotated[str, typer.Option(help="Column of the table with the patients.")] = "patient",
    ids: Ids = "checked",
    mask_label: Annotated[int | None, typer.Option(help="Value of the structure in all masks of the table.")] = None,
    coordinates: Coordinates = "ras",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    patients: PatientsOf = None,
    key: KeyPath = None,
    dask: Dask = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Apply a trained model to scans: writes label maps on their own grids, or scores.

    Writes OUT/predictions.csv (volumes or scores) and OUT/rejected.csv; for a segmentation also OUT/predictions/NAME.nii.gz (and
    a DICOM SEG, if the scan is DICOM). Repeat the command to resume it.
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
