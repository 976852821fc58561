"""`dagman classify`: a label from a table's items."""

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

_EXAMPLE = "Example: dagman classify runs/first nodules.csv --label label --repeats 10 --shares 25,50,100 --out malignancy"


@app.command(epilog=_EXAMPLE)
def run_classification(
    context: typer.Context,
    models_and_table: ModelsAndTable,
    out: Out,
    label: Annotated[str, typer.Option(help="Column with the label (two or more classes).")],
    method: Annotated[str, typer.Option(help="One or more of linear, knn, finetune, comma-separated.")] = "linear,knn",
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
    """Classify items by a linear probe or k-NN on frozen features, or by fine-tuning, in patient-level cross-validation.

    TABLE has one row per scan, mask or point (center_x_mm, ...). Reports AUC, accuracy, balanced accuracy, sensitivity,
    specificity and Brier score with 95 % confidence intervals over patients, for all labels and for few-shot subsets.
    OUT/report.html shows curves and individual items; OUT/model is for `dagman predict`. Several models are compared on the same
    items, crops, splits and few-shot draws.
    """
    from dagman.cli.tasks.printing import run_task
    from dagman.cli.tasks.task_options import parse_models, read_items, split_counts, split_names, split_shares
    from dagman.store.crops import CropSpec
    from dagman.tasks.classify.classification import ClassificationSettings, classify_items
    from dagman.tasks.finetuning import choose_finetuning

    specs, table = parse_models(context, models_and_table, weights=weights)
    settings = ClassificationSettings(
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
    items, opened = read_items(
        table, store, label=label, patient=patient, split=split, mask_label=mask_label, coordinates=coordinates, ids=ids
    )
    run_task(
        "classify",
        lambda on_part: classify_items(specs, items, out, settings, store=opened, cache=cache, on_part=on_part),
        out=out,
        as_json=as_json,
        notes=items.notes,
    )
