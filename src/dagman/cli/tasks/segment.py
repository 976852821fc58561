"""`dagman segment`: structures of a table's scans, or of a dataset.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagman.cli.tasks.task_options import Identified, Ids, KeyPath, Weights

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman segment runs/first scratch:tiny tumours.csv --shots 4,8,16 --draws 3 --out tumours"


@app.command(epilog=_EXAMPLE)
def run_segmentation(
    models_and_table: Annotated[
        list[str],
        typer.Argument(
            metavar="ENCODER... TABLE",
            help="One or more of: a run, an encoder folder, scratch:SIZE, resnet3d:SIZE, monai:PATH; then the table: CSV or "
            "Parquet with columns scan and mask, or a dataset.json (Decathlon, nnU-Net v2).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of results.")],
    labels: Annotated[
        str | None, typer.Option(help="Structures and their values, such as liver=5,kidneys=7+8. Default: the file's, or all.")
    ] = None,
    mask_label: Annotated[int | None, typer.Option(help="Value of the structure in the masks; others are background.")] = None,
    folds: Annotated[int, typer.Option(help="Number of folds by patient; a column 'split' replaces them.")] = 5,
    repeats: Annotated[int, typer.Option(help="Number of repeats, each with new folds.")] = 1,
    shares: Annotated[
        str | None,
        typer.Option(help="Shares of the training patients, such as 25,50,100 (percent). Default: 100 without --shots."),
    ] = None,
    shots: Annotated[str, typer.Option("--shots", "--per-class", help="Numbers of labelled patients, such as 4,8,16.")] = "",
    draws: Annotated[int, typer.Option(min=1, help="Number of few-shot draws in each repeat and fold.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of each training. Default: 250 on a CPU, 3000 on a GPU.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Crops per step.")] = 2,
    rate: Annotated[
        float | None, typer.Option(help="Largest learning rate. Default: 3e-3 below 1,000 steps, else 1e-3.", show_default=False)
    ] = None,
    layer_decay: Annotated[
        float,
        typer.Option(help="Factor of the learning rate from each layer to the one below; 1: one rate for all layers."),
    ] = 1.0,
    side: Annotated[int | None, typer.Option(help="Side of a crop in voxels, a multiple of 32. Default: the encoder's.")] = None,
    spacing: Annotated[float | None, typer.Option(help="Voxel size in mm. Default: the encoder's, where it performs best.")] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Mirror crops in training and windows in testing.")] = False,
    tolerance: Annotated[float, typer.Option(help="Tolerance of the surface Dice in mm.")] = 2.0,
    measures: Annotated[
        str, typer.Option(help="What is measured: all, or names such as dice,hd95_mm; dice alone is quicker.")
    ] = "all",
    patient: Annotated[str, typer.Option(help="The table's column of patients.")] = "patient",
    ids: Ids = "checked",
    split: Annotated[str, typer.Option(help="The table's column of train, val, test, if it has one.")] = "split",
    contoured: Annotated[
        str, typer.Option(help="The table's column of the structures drawn in each scan, if it has one; others are unknown there.")
    ] = "contoured",
    keep: Annotated[bool, typer.Option(help="Train a model on all scans for OUT/model.")] = True,
    identified: Identified = False,
    note: Annotated[
        list[str] | None, typer.Option(help="A sentence for the report, such as who drew the labels; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds, draws and fits.")] = 0,
    weights: Weights = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    key: KeyPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measures as JSON.")] = False,
) -> None:
    """Train and evaluate a segmentation network: a decoder from scratch on the encoder, by patient, full- and few-shot.

    Dice, HD95, surface Dice, lesions and volumes with 95 % intervals, on the masks' own grids. OUT/predictions holds label maps on
    the scans' grids (DICOM SEG too where they came as DICOM), OUT/model a model for `dagman predict`. Several encoders are compared
    on the same scans, splits and draws, with paired differences of Dice.
    """
    from rich.console import Console

    from dagman.cli.tasks.task_options import (
        escape_markup,
        format_results,
        print_differences,
        print_measures,
        split_counts,
        split_numbers,
    )
    from dagman.devices import tune_allocator
    from dagman.errors import SettingsError
    from dagman.evaluation.segmentation_scores import parse_measures
    from dagman.reports.tasks.comparison import write_comparison_report
    from dagman.reports.tasks.segmentation import write_segmentation_report
    from dagman.scans.label_files import describe_identity
    from dagman.tables.labelled_scans import read_labelled_scans
    from dagman.tasks.models import parse_model
    from dagman.tasks.segment.segmentation import SegmentationSettings, segment_scans

    *models, table = models_and_table
    if not models:
        raise SettingsError("segment takes an encoder and a table", do=f"Name an encoder before {table}, such as scratch:tiny")
    specs = [parse_model(text, weights=weights) for text in models]
    counts = split_counts("shots", shots)
    if shares is None:
        shares = "" if counts else "100"
    settings = SegmentationSettings(
        folds=folds,
        repeats=repeats,
        shares=tuple(share / 100 for share in split_numbers("shares", shares)),
        per_class=counts,
        draws=draws,
        seed=seed,
        steps=steps,
        batch=batch,
        rate=rate,
        layer_decay=layer_decay,
        side=side,
        spacing=spacing,
        mirror=mirror,
        tolerance=tolerance,
        measures=parse_measures(measures),
        keep=keep,
        identified=identified,
        device=device,
        notes=tuple(note or ()),
    )
    columns = {"patient": patient, "split": split, "contoured": contoured, "ids": ids}
    data = read_labelled_scans(table, labels=labels, mask_label=mask_label, **columns)
    tune_allocator()
    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    with console.status("reading") as status:
        results = segment_scans(specs, data, out, settings, on_part=lambda text: status.update(escape_markup(text)))
        page = write_segmentation_report(results) if len(specs) == 1 else write_comparison_report(results)
    if as_json:
        typer.echo(format_results(out, page))
    else:
        print_measures(console, results.summary, page)
        print_differences(console, results.summary)
        if said := describe_identity(out / "predictions", identified=identified):
            console.print(said, markup=False)
