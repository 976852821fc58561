"""`dagman prepare`: scans to a store."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dagman.cli.progress import PlainLines, describe_bytes, describe_seconds, show_preparing
from dagman.cli.scans.options import Dask
from dagman.cli.tasks.task_options import KeyPath, PatientsOf

if TYPE_CHECKING:
    from rich.console import Console

    from dagman.store.writer import StoreSummary

app = typer.Typer(add_completion=False)

_SHOWN = 10
"""Refusals printed; all are in rejected.csv."""


class _Tilt(StrEnum):
    resample = "resample"
    refuse = "refuse"


class _Modality(StrEnum):
    auto = "auto"
    ct = "ct"
    mr = "mr"


@app.command(epilog="Example: dagman prepare cohort --out store --workers 4")
def prepare_scans(
    scans: Annotated[
        list[Path],
        typer.Argument(
            help="Files, folders (searched recursively), archives, glob patterns, or @LIST (a file of paths); formats may be mixed."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the store; an existing store is extended.")],
    spacing: Annotated[float, typer.Option(help="Isotropic voxel size in mm.")] = 2.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")] = None,
    modality: Annotated[
        _Modality, typer.Option(help="Modality of the scans, if the files do not state it correctly.")
    ] = _Modality.auto,
    tilt: Annotated[
        _Tilt, typer.Option(help="Scans with a tilted gantry: resample them to an orthogonal grid, or reject them.")
    ] = (_Tilt.resample),
    widest_gap: Annotated[
        float,
        typer.Option("--widest-gap", help="Largest gap in mm to interpolate where slices are missing or unevenly spaced.", min=0.0),
    ] = 3.0,
    patients: PatientsOf = None,
    key: KeyPath = None,
    dask: Dask = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Prepare scans for training: resample them (with anti-aliasing), crop them to the body, and keep them in a store as int16.

    Disk space and time are estimated first. Unusable series are listed with the reason in STORE/rejected.csv, and do not stop the
    others. You can interrupt the command at any time and repeat it to resume.
    """
    from rich.console import Console

    from dagman.records.sources import expand_sources
    from dagman.store.preparation import Preparation
    from dagman.store.writer import prepare_store

    console = Console(stderr=as_json)
    with PlainLines(console, out) as lines, show_preparing(console, lines) as notify:
        lines.state("searching for scans")
        summary = prepare_store(
            expand_sources(scans),
            out,
            Preparation(spacing=spacing),
            workers=workers,
            modality=modality.value,
            tilt=tilt.value,
            widest_gap=widest_gap,
            key=key,
            patients=patients,
            dask=dask,
            on_event=notify,
        )
    if as_json:
        typer.echo(json.dumps(_list_outcome(summary)))
    else:
        _print_summary(console, summary)


def _print_summary(console: Console, summary: StoreSummary) -> None:
    from rich.markup import escape

    already = f" ({summary.already} were already there)" if summary.already else ""
    console.print(
        f"[bold]{summary.kept} kept[/bold]{already}, {summary.rejected} rejected, in {describe_seconds(summary.seconds)}."
    )
    for refusal in summary.refusals[:_SHOWN]:
        # Escaped: a path may hold square brackets, which would be taken for markup.
        source, reason = escape(refusal.source), escape(refusal.reason)
        console.print(f"  [yellow]{source}[/yellow]: {reason}", highlight=False, soft_wrap=True)
    if summary.rejected > _SHOWN:
        console.print(f"  and {summary.rejected - _SHOWN} more in {summary.path / 'rejected.csv'}", soft_wrap=True, markup=False)
    console.print(f"Store: {summary.path} ({describe_bytes(summary.bytes)})", soft_wrap=True, highlight=False, markup=False)
    for note in summary.notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)


def _list_outcome(summary: StoreSummary) -> dict[str, object]:
    return {
        "store": str(summary.path),
        "kept": summary.kept,
        "already": summary.already,
        "rejected": summary.rejected,
        "seconds": round(summary.seconds, 2),
        "bytes": summary.bytes,
        "replaced": list(summary.replaced),
        "vanished": list(summary.vanished),
        "notes": list(summary.notes),
        "refusals": [{"source": one.source, "reason": one.reason} for one in summary.refusals],
    }
