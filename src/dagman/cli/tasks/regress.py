"""`dagman regress`: a number of a table's items."""

from __future__ import annotations

from typing import Annotated

import typer

from dagman.cli.tasks.task_options import (
    AsJson,
    Cache,
    Coordinates,
    CropMm,
    CropSpacing,
    Device,
    Draws,
    Epochs,
    Finetuning,
    Folds,
    Ids,
    LayerDecay,
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
    StoreFolder,
    Weights,
)

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman regress runs/first nodules.csv --label diameter_mm --shares 25,50,100 --out diameters"


@app.command(epilog=_EXAMPLE)
def run_regression(
    context: typer.Context,
    models_and_table: ModelsAndTable,
    out: Out,
    label: Annotated[str, typer.Option(help="Column with the number.")],
    method: Annotated[str, typer.Option(help="One or both of ridge, finetune, comma-separated.")] = "ridge",
    folds: Folds = 5,
    repeats: Repeats = None,
    shares: Shares = None,
    per_class: Shots = "",
    draws: Draws = 1,
    epochs: Epochs = None,
    finetuning: Finetuning = "short",
    layer_decay: LayerDecay = None,
    patient: Patient = "patient",
    ids: Ids = "checked",
    split: SplitColumn = "split",
    mask_label: MaskLabel = None,
    coordinates: Coordinates = "ras",
    crop_mm: CropMm = None,
    crop_spacing: CropSpacing = None,
    store: StoreFolder = None,
    cache: Cache = None,
    primary: Primary = "",
    seed: Seed = 0,
    weights: Weights = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Predict a number by ridge regression on frozen features, or by fine-tuning, in patient-level cross-validation.

    TABLE has one row per scan, mask or point (center_x_mm, ...). Reports R², mean absolute error, root mean squared error and
    Spearman's correlation with 95 % confidence intervals over patients, for all labels and for few-shot subsets. OUT/report.html
    plots predicted against true values; OUT/model is for `dagman predict`. Several models are compared on the same items, crops,
    splits and few-shot draws.
    """
    from dagman.cli.tasks.printing import run_task
    from dagman.cli.tasks.task_options import parse_models, read_items, split_counts, split_names, split_shares
    from dagman.store.crops import CropSpec
    from dagman.tasks.finetuning import choose_finetuning
    from dagman.tasks.regress.regression import RegressionSettings, regress_items

    specs, table = parse_models(context, models_and_table, weights=weights)
    settings = RegressionSettings(
        label=label,
        methods=split_names(method),
        folds=folds,
        repeats=repeats,
        shares=split_shares(shares),
        per_class=split_counts("shots", per_class),
        draws=draws,
        primary=primary,
        seed=seed,
        crop=CropSpec(crop_mm, crop_spacing),
        device=device,
        finetuning=choose_finetuning(finetuning, epochs=epochs, layer_decay=layer_decay),
    )
    columns = {"patient": patient, "split": split, "mask_label": mask_label, "coordinates": coordinates, "ids": ids}
    items, opened = read_items(table, store, clinical=(label,), **columns)
    run_task(
        "regress",
        lambda on_part: regress_items(specs, items, out, settings, store=opened, cache=cache, on_part=on_part),
        out=out,
        as_json=as_json,
        notes=items.notes,
    )
