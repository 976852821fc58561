"""`dagman attention`: maps of what the [CLS] token attends to in a scan, as NIfTI on the scan's grid and as images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dagman.cli.tasks.task_options import Identified, Weights, one_of

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman attention runs/first scans/patient-7.nii.gz --out attention-7"


@app.command(epilog=_EXAMPLE)
def map_attention(
    encoder: Annotated[str, typer.Argument(help="A run, an encoder folder, or scratch:SIZE.")],
    scan: Annotated[Path, typer.Argument(help="A scan: a file, or a folder with one series.")],
    out: Annotated[Path, typer.Option(help="Output folder.")],
    weights: Weights = "auto",
    to: Annotated[
        str,
        typer.Option(
            callback=one_of("to", "nifti", "dicom"),
            help="nifti, or dicom to write the mean as a DICOM Parametric Map as well (needs the extra seg).",
        ),
    ] = "nifti",
    identified: Identified = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the attention maps of a scan: the mean and each head, as NIfTI on the scan's grid, and as PNG overlays.

    Values are relative to uniform attention, so 1 is the mean of a view. They can be compared within a view, but not between
    scans. Air that was cropped before encoding is 0.
    """
    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.devices import tune_allocator
    from dagman.encoder.attention import write_attention, write_attention_dicom
    from dagman.encoder.loading import load_encoder
    from dagman.records.provenance import write_command
    from dagman.reports.figures.overlays import describe_outside, describe_range, draw_overlays, share_outside

    files = _find_series(scan) if to == "dicom" else ()
    console = Console(stderr=as_json, soft_wrap=True, markup=False, highlight=False)
    tune_allocator()
    with follow_parts(console, out) as notify:
        loaded = load_encoder(encoder, device=device, weights=weights)
        opened = loaded.read(scan)
        notify(f"attention of {' x '.join(map(str, opened.shape))} voxels")
        attention = loaded.attention(opened)
        notify("writing maps")
        maps = write_attention(attention, opened, out)
        if files:
            maps.append(out / "attention_mean.dcm")
            write_attention_dicom(attention, opened, files, maps[-1], identified=identified)
        notify("drawing pictures")
        intensity = (loaded.config.low, loaded.config.high) if opened.modality == "CT" else (0.0, 10000.0)
        pictures = draw_overlays(attention, out, intensity=intensity)
    outcome = {
        "maps": [path.name for path in maps],
        "pictures": [path.name for path in pictures],
        "range": describe_range(attention.mean),
        "outside_body": dict(zip(("share", "uniform"), share_outside(attention), strict=True)),
        "out": str(out),
    }
    inputs = {"encoder": loaded.source, "encoder_digest": loaded.digest, "content_hash": attention.prepared.content_hash}
    write_command(out, "attention", inputs=inputs, outcome=outcome)
    if as_json:
        typer.echo(json.dumps(outcome))
        return
    console.print(f"{loaded.describe()}; {len(attention.heads)} heads, mean attention {outcome['range']}")
    console.print(describe_outside(attention))
    console.print(f"{len(maps)} maps and {len(pictures)} pictures")
    console.print(f"written: {out}")


def _find_series(scan: Path) -> tuple[Path, ...]:
    """The DICOM files of a scan, found before any work starts; raises ScanError if there are none."""
    from dagman.errors import ScanError
    from dagman.scans.dicom.derived.sources import import_highdicom
    from dagman.scans.label_files import find_dicom_files

    import_highdicom()
    files = find_dicom_files(scan)
    if not files:
        what = "is not DICOM, but a Parametric Map must refer to a DICOM series"
        raise ScanError(what, where=scan, do="Give the DICOM series, or omit --to dicom")
    return files
