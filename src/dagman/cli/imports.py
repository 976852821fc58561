"""`dagman import`: convert public data sets to tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)

_SHOWN = 10
"""Number of skipped entries that are printed; left_out.csv lists all of them."""


@app.callback(epilog="Example: dagman import lidc LIDC-IDRI --out lidc --benign 1-2 --malignant 4-5")
def import_set() -> None:
    """Convert a public data set to a table for the task commands."""


@app.command("lidc", epilog="Example: dagman import lidc LIDC-IDRI --out lidc --benign 1-2 --malignant 4-5")
def import_lidc_idri(
    folder: Annotated[Path, typer.Argument(help="Folder with the DICOM series and the readers' XML files, at any depth.")],
    out: Annotated[Path, typer.Option(help="Output folder: table.csv, masks/, left_out.csv.")],
    benign: Annotated[
        str, typer.Option(help="Median malignancy ratings counted as benign, such as 1-3 (as in the paper) or 1-2.")
    ] = "1-3",
    malignant: Annotated[str, typer.Option(help="Median malignancy ratings counted as malignant, such as 4-5.")] = "4-5",
    readers: Annotated[int, typer.Option(min=1, max=4, help="Minimum number of readers who outlined a nodule.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Convert LIDC-IDRI as distributed by TCIA: one row per nodule, with the consensus of its readers.

    Outlines of up to four readers are grouped into nodules; a mask holds the voxels that at least half of them outlined. Nodules
    whose median malignancy is in neither range are excluded and counted. The DICOM scans are not copied.
    """
    from rich.console import Console
    from rich.markup import escape as escape_markup
    from rich.progress import Progress

    from dagman.cli.progress import PlainLines
    from dagman.records.counts import count_noun
    from dagman.records.provenance import write_command
    from dagman.tables.lidc import import_lidc

    console = Console(stderr=as_json)
    ranges = {"benign": _parse_range("--benign", benign), "malignant": _parse_range("--malignant", malignant)}
    lines = PlainLines(console, out)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def notify(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            lines.state(f"reading: scan {done} of {total}", done, total)

        summary = import_lidc(folder, out, **ranges, readers=readers, on_scan=notify)
    outcome = {
        "scans": summary.scans,
        "patients": summary.patients,
        "benign": summary.benign,
        "malignant": summary.malignant,
        "left_out": len(summary.left_out),
        "small_marks": summary.small,
        "non_nodule_marks": summary.others,
    }
    write_command(out, "import lidc", settings={**ranges, "readers": readers}, inputs={"folder": str(folder)}, outcome=outcome)
    if as_json:
        typer.echo(json.dumps({"table": str(summary.table), **outcome}))
        return
    console.print(
        f"[bold]{count_noun(summary.benign + summary.malignant, 'nodule')}[/bold] of {count_noun(summary.patients, 'patient')} "
        f"({count_noun(summary.scans, 'scan')}): "
        f"{summary.benign} benign ({benign}), {summary.malignant} malignant ({malignant}).",
        highlight=False,
    )
    console.print(
        f"Not in the table: {summary.small} readers' marks of nodules below 3 mm, {summary.others} of findings other than nodules.",
        highlight=False,
    )
    for refusal in summary.left_out[:_SHOWN]:
        source, reason = escape_markup(refusal.source), escape_markup(refusal.reason)
        console.print(f"  [yellow]{source}[/yellow]: {reason}", highlight=False, soft_wrap=True)
    if len(summary.left_out) > _SHOWN:
        more = f"  and {len(summary.left_out) - _SHOWN} more in {out / 'left_out.csv'}"
        console.print(more, highlight=False, soft_wrap=True, markup=False)
    console.print(f"Table: {summary.table}", highlight=False, soft_wrap=True, markup=False)


@app.command("medmnist", epilog="Example: dagman import medmnist nodulemnist3d.npz --out nodulemnist")
def import_medmnist_file(
    file: Annotated[Path, typer.Argument(help="The .npz file of a 3D set, 28 or 64 voxels per side, under its original name.")],
    out: Annotated[Path, typer.Option(help="Output folder: table.csv with the official split, and scans/.")],
    window: Annotated[
        tuple[float, float] | None, typer.Option(help="HU that grey values 0 and 255 represent. Default: depends on the set.")
    ] = None,
    spacing: Annotated[
        float | None, typer.Option(help="Voxel size in mm. Default: that of the set, or 2 mm where it states none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Convert a MedMNIST 3D set (NoduleMNIST3D, OrganMNIST3D, FractureMNIST3D): one NIfTI file per item, and a table.

    The files hold grey values, not HU. They are mapped back to HU by assuming a CT window, which is printed.
    """
    from rich.console import Console

    from dagman.records.counts import count_noun
    from dagman.records.hashes import hash_file
    from dagman.records.provenance import write_command
    from dagman.tables.medmnist import import_medmnist

    summary = import_medmnist(file, out, window=window, spacing=spacing)
    outcome = {"items": summary.items, "window_hu": summary.window, "spacing_mm": summary.spacing}
    write_command(out, "import medmnist", settings={}, inputs={"file": str(file), "hash": hash_file(file)}, outcome=outcome)
    if as_json:
        typer.echo(json.dumps({"table": str(summary.table), **outcome}))
        return
    console = Console()
    counts = ", ".join(f"{count} {split}" for split, count in summary.items.items())
    console.print(f"[bold]{count_noun(sum(summary.items.values()), 'item')}[/bold]: {counts}.", highlight=False)
    low, high = summary.window
    console.print(
        f"Grey values are not HU: 0 to 255 were mapped to {low:g} to {high:g} HU, voxels for {summary.spacing:.3g} mm.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"Table: {summary.table}", highlight=False, soft_wrap=True, markup=False)


def _parse_range(option: str, text: str) -> tuple[int, int]:
    from dagman.errors import TableError

    match = re.fullmatch(r"\s*([1-5])\s*(?:-\s*([1-5])\s*)?", text)
    if match is None:
        raise TableError(f"{option} is {text!r}", do="Give a range of malignancies from 1 to 5, such as 1-3")
    return int(match[1]), int(match[2] or match[1])
