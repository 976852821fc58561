"""`dagman view`: one HTML file that shows a scan in three planes, with attention, labels and marks over it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dagman.reports.viewer import LabelLayer
    from dagman.scans.scan import Scan

app = typer.Typer(add_completion=False)

_HEAD = 4096
"""Bytes of a page that hold what made it."""


@app.command(epilog="Example: dagman view scans/patient-7.nii.gz --attention runs/first --out patient-7.html")
def view_scan(
    scan: Annotated[Path, typer.Argument(help="A scan: a file, or a folder with one series.")],
    attention: Annotated[str, typer.Option(help="A run or an encoder folder, whose [CLS] attention is overlaid.")] = "",
    labels: Annotated[
        Path | None, typer.Option(help="Label map of the scan to overlay: NIfTI or another image file, DICOM SEG or RTSTRUCT.")
    ] = None,
    names: Annotated[
        str,
        typer.Option(
            help="Label names: a table with the columns id and name, a JSON file, a segmentation model, or liver=1,spleen=2. "
            "Default: from the header of the map, or from dagman predict."
        ),
    ] = "",
    marks: Annotated[
        Path | None,
        typer.Option(
            help="Table of nodules to mark, with the columns scan, center_x_mm, center_y_mm, center_z_mm and diameter_mm."
        ),
    ] = None,
    coordinates: Annotated[
        str,
        typer.Option(help="Coordinate system of the marks: ras, lps, or voxels. Default: ras; lps for LUNA16's coordX, ...."),
    ] = "",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("view.html"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
) -> None:
    """Write an HTML viewer of a scan in three planes. It opens in any browser, without a server.

    Attention, labels and marks can be combined. The file contains the scan and its name, so protect it like the scan itself.
    Scans of more than 16 million voxels are downsampled.
    """
    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.errors import DagmanError
    from dagman.records.counts import count_noun
    from dagman.records.files import write_text
    from dagman.reports.viewer import Exhibit, place_attention, render_viewer
    from dagman.scans.reading import read_scan
    from dagman.tables.marks import read_marks

    for option, needed, given, missing in (
        ("--names", "--labels", names, labels is None),
        ("--coordinates", "--marks", coordinates, marks is None),
    ):
        if given and missing:
            raise DagmanError(f"{option} was given without {needed}", do=f"Give {needed}, or leave {option} out")
    # The file's page of the same question may be made again; anything else is kept.
    over = {"attention": attention, "labels": labels and labels.name, "names": names, "marks": marks and marks.name}
    made_by = " ".join(["dagman view", scan.name, *(f"--{option} {value}" for option, value in over.items() if value)])
    _refuse_other(out, made_by)
    attended = None
    with follow_parts(Console(), out.parent, log=f"{out.name}.run.log") as notify:
        if attention:
            from dagman.encoder.loading import load_encoder

            loaded = load_encoder(attention, device=device)
            opened = loaded.read(scan)
            notify(f"attention of {' x '.join(map(str, opened.shape))} voxels")
            attended = place_attention(loaded.attention(opened))
        else:
            opened = read_scan(scan)
    layer = None if labels is None else _read_labels(labels, names, opened)
    found, notes = ([], []) if marks is None else read_marks(marks, opened, place=scan, coordinates=coordinates)
    for note in notes:
        typer.echo(note.text, err=True)
    exhibit = Exhibit(
        scan=opened,
        title=scan.name,
        attention=attended,
        labels=[layer] if layer else [],
        marks=found,
        point=found[0].center_mm if found else None,
    )
    write_text(out, render_viewer(exhibit, made_by=made_by))
    marked = f", {count_noun(len(found), 'mark')}" if marks is not None else ""
    typer.echo(f"written: {out}, {out.stat().st_size / 1e6:.1f} MB{marked}")


def _refuse_other(out: Path, made_by: str) -> None:
    """Raise DagmanError where the file is there and shows something else."""
    from html import escape

    from dagman.errors import DagmanError

    if not out.exists():
        return
    if out.is_dir():
        raise DagmanError("is a folder", where=out, do="Give --out a file, such as view.html")
    with out.open("rb") as file:
        head = file.read(_HEAD)
    if f'content="{escape(made_by)}"'.encode() not in head:
        raise DagmanError("exists and was made from something else", where=out, do="Give another --out, or remove it")


def _read_labels(labels: Path, names: str, scan: Scan) -> LabelLayer:
    from dagman.reports.viewer import LabelLayer
    from dagman.scans.reading import read_scan
    from dagman.scans.structures import holds_structures, read_structures
    from dagman.tables.labels import find_label_names, read_own_names

    if holds_structures(labels):
        drawn, called = read_structures(labels, lambda: (scan.affine, scan.shape))
        return LabelLayer(labels=drawn, names=find_label_names(names) if names else called)
    mapped = read_scan(labels, labels=True)
    if names:
        return LabelLayer(labels=mapped, names=find_label_names(names))
    called, where = read_own_names(labels)
    if where:
        typer.echo(f"names of labels: {where}", err=True)
    return LabelLayer(labels=mapped, names=called)
