"""`dagman view`: one HTML file that shows a scan in three planes, with attention or labels over it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: dagman view scans/patient-7.nii.gz --attention runs/first --out patient-7.html")
def view_scan(
    scan: Annotated[Path, typer.Argument(help="One scan: a file, or a folder with one series.")],
    attention: Annotated[str, typer.Option(help="A run, or an encoder folder: show where its [CLS] token attends.")] = "",
    labels: Annotated[Path | None, typer.Option(help="A label map of the scan to show, such as a segmentation.")] = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("view.html"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
) -> None:
    """Write one HTML file that shows a scan in three planes; open it in a browser, no server is needed.

    The file holds the scan and names it: treat it as you treat the scan. Of a scan of more than 16 million voxels, blocks
    are averaged.
    """
    from dagman.errors import DagmanError
    from dagman.records.files import write_text
    from dagman.reports.viewer import render_viewer
    from dagman.scans.reading import read_scan

    if attention and labels is not None:
        raise DagmanError("--attention and --labels are both given", do="Give one of them: a file shows one thing over the scan")
    attended = None
    if attention:
        from dagman.encoder.loading import load_encoder

        loaded = load_encoder(attention, device=device)
        opened = loaded.read(scan)
        attended = loaded.attention(opened)
    else:
        opened = read_scan(scan)
    mapped = None if labels is None else read_scan(labels, labels=True)
    write_text(out, render_viewer(opened, title=scan.name, attention=attended, labels=mapped))
    typer.echo(f"written: {out}, {out.stat().st_size / 1e6:.1f} MB")
