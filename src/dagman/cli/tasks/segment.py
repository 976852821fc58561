"""`dagman segment`: structures of a table's scans, or of a dataset.json."""

from __future__ import annotations

from typing import Annotated

import typer

from dagman.cli.tasks.task_options import (
    AsJson,
    Device,
    Draws,
    Folds,
    Identified,
    Ids,
    KeyPath,
    MaskLabel,
    ModelsAndTable,
    Out,
    Patient,
    Primary,
    Repeats,
    Seed,
    Shares,
    Shots,
    SplitColumn,
    Weights,
)

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman segment runs/first scratch:tiny tumours.csv --shots 4,8,16 --draws 3 --out tumours"


@app.command(epilog=_EXAMPLE)
def run_segmentation(
    context: typer.Context,
    models_and_table: ModelsAndTable,
    out: Out,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Structures and their values, such as liver=5,kidneys=7+8; for RTSTRUCT or SEG, names only. Default: all."
        ),
    ] = None,
    mask_label: MaskLabel = None,
    folds: Folds = 5,
    repeats: Repeats = None,
    shares: Shares = None,
    shots: Shots = "",
    draws: Draws = 1,
    steps: Annotated[int | None, typer.Option(help="Number of training steps. Default: 250 on a CPU, 3000 on a GPU.")] = None,
    batch: Annotated[int, typer.Option(help="Crops per step.")] = 2,
    rate: Annotated[
        float | None, typer.Option(help="Peak learning rate. Default: 3e-3 below 1,000 steps, otherwise 1e-3.", show_default=False)
    ] = None,
    layer_decay: Annotated[float, typer.Option(help="Layer-wise decay of the learning rate; 1: one rate for all layers.")] = 1.0,
    side: Annotated[
        int | None, typer.Option(help="Side of training crops in voxels, a multiple of 32. Default: that of the encoder.")
    ] = None,
    spacing: Annotated[
        float | None, typer.Option(help="Voxel size in mm. Default: that of the encoder, which usually performs best.")
    ] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Augment by mirroring, in training and at test time.")] = False,
    tolerance: Annotated[float, typer.Option(help="Tolerance of the surface Dice in mm.")] = 2.0,
    measures: Annotated[
        str, typer.Option(help="Measures to compute: all, or names such as dice,hd95_mm; dice alone is faster.")
    ] = "all",
    patient: Patient = "patient",
    ids: Ids = "checked",
    split: SplitColumn = "split",
    contoured: Annotated[
        str,
        typer.Option(
            help="Column with the structures annotated in each scan, if there is one; others are treated as unknown there."
        ),
    ] = "contoured",
    keep: Annotated[bool, typer.Option(help="Also train a model on all scans, in OUT/model.")] = True,
    identified: Identified = False,
    key: KeyPath = None,
    note: Annotated[
        list[str] | None, typer.Option(help="Sentence to add to the report, such as who drew the labels. Repeatable.")
    ] = None,
    primary: Primary = "",
    seed: Seed = 0,
    weights: Weights = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train and evaluate a segmentation network (the encoder with a new decoder) in patient-level cross-validation.

    TABLE has the columns scan and mask, or is a dataset.json (Decathlon, nnU-Net v2). Reports Dice, HD95, surface Dice, lesion
    counts and volumes with 95 % confidence intervals, on the grids of the masks, for all labels and for few-shot subsets.
    OUT/predictions holds label maps on the scans' grids (also as DICOM SEG, for DICOM scans); OUT/model is for `dagman predict`.
    Several encoders are compared on the same scans, splits and few-shot draws, with paired differences of Dice.
    """
    from dagman.cli.tasks.printing import run_task
    from dagman.cli.tasks.task_options import parse_models, split_counts, split_shares
    from dagman.evaluation.segmentation_scores import parse_measures
    from dagman.scans.label_files import describe_identity
    from dagman.tables.labelled_scans import read_labelled_scans
    from dagman.tasks.segment.segmentation import SegmentationSettings, segment_scans

    specs, table = parse_models(context, models_and_table, weights=weights)
    counts = split_counts("shots", shots)
    settings = SegmentationSettings(
        folds=folds,
        repeats=repeats,
        shares=() if shares is None and counts else split_shares(shares),
        per_class=counts,
        draws=draws,
        primary=primary,
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
    run_task(
        "segment",
        lambda on_part: segment_scans(specs, data, out, settings, on_part=on_part),
        out=out,
        as_json=as_json,
        notes=data.notes,
        remark=lambda: describe_identity(out / "predictions", identified=identified),
    )
