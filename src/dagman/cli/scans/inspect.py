"""`dagman inspect`: a verdict for each series found, on the screen, as CSV, as JSON, and as one page with pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dagman.cli.scans.options import Dask
from dagman.cli.tasks.task_options import KeyPath, PatientsOf

if TYPE_CHECKING:
    from dagman.scans.discovery import Discovery
    from dagman.scans.inspection import Inspection
    from dagman.scans.scan import Modality

app = typer.Typer(add_completion=False)

_NAMES_KEPT = "Names of files and folders are kept in inspect.csv and inspect.html: they may name patients."
_MOST_STYLED = 1000
"""Rows that a terminal gets in colour and folded to its width."""
_SERIES_A_PROCESS = 8
"""A further process costs about a second to start; fewer series than this do not earn it."""


class ModalityChoice(StrEnum):
    """What --modality takes."""

    auto = "auto"
    ct = "ct"
    mr = "mr"

    @property
    def modality(self) -> Modality | None:
        """What the readers take."""
        return "CT" if self is ModalityChoice.ct else "MR" if self is ModalityChoice.mr else None


class TiltChoice(StrEnum):
    """What --tilt takes."""

    resample = "resample"
    refuse = "refuse"


@app.command(epilog="Example: dagman inspect ~/scans --out checked")
def inspect_scans(
    scans: Annotated[
        list[Path],
        typer.Argument(
            help="Files, folders (searched recursively), archives, glob patterns, or @LIST (a file of paths); formats may be mixed."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Output folder for inspect.html and inspect.csv.")] = None,
    modality: Annotated[
        ModalityChoice, typer.Option(help="Modality of the scans; auto: determined from the file header or the intensities.")
    ] = (ModalityChoice.auto),
    tilt: Annotated[
        TiltChoice, typer.Option(help="Scans with a tilted gantry: resample them to an orthogonal grid, or reject them.")
    ] = TiltChoice.resample,
    widest_gap: Annotated[
        float,
        typer.Option("--widest-gap", help="Largest gap in mm to interpolate where slices are missing or unevenly spaced.", min=0.0),
    ] = 3.0,
    workers: Annotated[
        int | None, typer.Option(help="Number of processes. Default: depends on the number of series and cores.", min=1)
    ] = None,
    patients: PatientsOf = None,
    key: KeyPath = None,
    dask: Dask = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check which series are usable, and give the reason for those that are not.

    Reads NIfTI, NRRD, MetaImage and DICOM. The exit code is 0 if at least one series is usable, otherwise 2.
    """
    from dagman.records.key import make_asked_key
    from dagman.records.sources import expand_sources
    from dagman.scans.dicom import HEADERS, KeptHeaders
    from dagman.scans.discovery import find_series
    from dagman.tables.patients import state_patients

    scans = expand_sources(scans)
    made = make_asked_key()
    kept = None if out is None else KeptHeaders(out / HEADERS)
    found = find_series(scans, modality=modality.modality, tilt=tilt.value, widest_gap=widest_gap, kept=kept)
    found = state_patients(found, patients)
    rows = _inspect_all(found, workers, out, dask)
    if as_json:
        typer.echo(json.dumps({"counts": _count(rows), "series": [row.to_row() for row in rows]}, indent=2))
    else:
        _print_table(rows)
    if made:
        typer.echo(made, err=as_json)
    if out is not None:
        _write_results(out, rows, [str(path) for path in scans])
        assert kept is not None
        kept.write()
        typer.echo(f"Written: {out / 'inspect.html'}", err=as_json)
        typer.echo(_NAMES_KEPT, err=as_json)
    if not any(row.accepted for row in rows):
        raise typer.Exit(2)


def _inspect_all(found: Discovery, workers: int | None, out: Path | None, dask: str | None) -> list[Inspection]:
    import os
    from functools import partial

    from rich.console import Console
    from rich.progress import track

    from dagman.cli.progress import PlainLines
    from dagman.scans.discovery import Refusal
    from dagman.scans.inspection import inspect_refusal, inspect_series
    from dagman.store.workers import Lost, run_tasks

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or max(1, min(cores, len(found.series) // _SERIES_A_PROCESS))
    rows = [inspect_refusal(refusal) for refusal in found.refused]
    screen = Console(stderr=True)
    done = run_tasks(partial(inspect_series, picture=out is not None), found.series, count, dask=dask)
    total = len(found.series)
    following = track(done, "Reading", total, console=screen, transient=True)
    if not screen.is_terminal:
        following = PlainLines(screen, out).follow(done, "reading: series", total)
    for index, result in following:
        if isinstance(result, Lost):
            result = inspect_refusal(Refusal(source=found.series[index].source, reason=result.reason))
        rows.append(result)
    return sorted(rows, key=lambda row: (not row.accepted, row.source))


def _count(rows: Sequence[Inspection]) -> dict[str, int]:
    accepted = [row for row in rows if row.accepted]
    patients = len({row.patient for row in accepted})
    assumed = sum(row.patient_from == "assumed" for row in accepted)
    return {"accepted": len(accepted), "refused": len(rows) - len(accepted), "patients": patients, "patients_assumed": assumed}


def _format_counts(rows: Sequence[Inspection]) -> str:
    from dagman.records.counts import count_noun
    from dagman.tables.patients import note_assumed

    counts = _count(rows)
    of_patients = f"{counts['accepted']} series of {count_noun(counts['patients'], 'patient')}"
    used = f"{of_patients if counts['accepted'] else 'no series'} can be used"
    notes = [f" {note[0].upper()}{note[1:]}." for note in note_assumed(counts["patients_assumed"], counts["accepted"])]
    return f"{used}; {counts['refused']} refused.{''.join(notes)}"


def _describe(row: Inspection) -> dict[str, Any]:
    """The cells that screen, CSV and page share."""
    return {
        "source": row.source,
        "verdict": "accepted" if row.accepted else "refused",
        "format": row.kind or "",
        "modality": row.modality or "",
        "size": " x ".join(map(str, row.size)) if row.size else "",
        "spacing_mm": " x ".join(f"{value:.3g}" for value in row.spacing_mm) if row.spacing_mm else "",
        "axes": row.axes or "",
        "values": f"{row.low:.4g} to {row.high:.4g}" if row.low is not None and row.high is not None else "",
        "patient": row.patient or "",
        "reason": row.reason or "; ".join(row.notes),
    }


def _print_table(rows: Sequence[Inspection]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = ("source", "verdict", "modality", "size", "spacing_mm", "axes", "values", "reason")
    if not console.is_terminal or len(rows) > _MOST_STYLED:
        # A pipe has no width, and rich takes 2 ms a row, more than reading a small scan.
        lines = [shown, *(tuple(str(_describe(row)[name]) for name in shown) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        typer.echo(_format_counts(rows))
        return
    table = Table(*shown, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        cells = _describe(row)
        style = "green" if row.accepted else "red"
        # Text, not markup: a path may hold square brackets.
        table.add_row(*(Text(cells[name], style=style if name == "verdict" else "", overflow="fold") for name in shown))
    console.print(table)
    console.print(_format_counts(rows), style="bold")


def _write_results(out: Path, rows: Sequence[Inspection], scans: Sequence[str]) -> None:
    from dagman.records.csv_file import write_csv
    from dagman.records.files import write_text
    from dagman.records.provenance import hide_path, write_command
    from dagman.reports.inspection_page import render_inspection

    cells = [_describe(row) for row in rows]
    write_csv(out / "inspect.csv", list(cells[0]), [list(cell.values()) for cell in cells])
    write_text(out / "inspect.html", render_inspection(rows, _describe, lead=f"{_format_counts(rows)} {_NAMES_KEPT}", scans=scans))
    write_command(out, "inspect", settings={"scans": [hide_path(scan) for scan in scans]}, outcome=_count(rows))
