"""`dagman outcome`: a response, or time and event, from a table's items."""

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

_EXAMPLE = "Example: dagman outcome runs/first outcome.csv --time time --event event --clinical age,grade --out outcome"


@app.command(epilog=_EXAMPLE)
def run_outcome(
    context: typer.Context,
    models_and_table: ModelsAndTable,
    out: Out,
    time: Annotated[str | None, typer.Option(help="Column with the time from the scan to the event or the last follow-up.")] = None,
    event: Annotated[str | None, typer.Option(help="Column with the event indicator: 1 if observed, 0 if censored.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with a response, instead of time and event.")] = None,
    clinical: Annotated[
        str, typer.Option(help="Clinical columns, comma-separated; evaluated alone and combined with the image.")
    ] = "",
    method: Annotated[
        str,
        typer.Option(help="One or more of cox, forest, finetune (for time and event; a response always uses the linear probe)."),
    ] = "",
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
    """Predict survival (time and event) or a response from the image, from clinical columns, and from both, in patient-level
    cross-validation.

    TABLE has one row per scan or lesion; those of one patient are pooled. Survival: a Cox elastic net or a random survival forest
    on frozen features, or fine-tuning with the Cox loss. Reports Harrell's and Uno's C-index, integrated Brier score,
    time-dependent AUC, calibration, and Kaplan-Meier curves of risk groups whose threshold is set on the training fold. Response:
    a linear probe, evaluated as in dagman classify. Missing clinical values are counted, and imputed within each fold.
    """
    from dagman.cli.tasks.printing import run_task
    from dagman.cli.tasks.task_options import parse_models, read_items, split_counts, split_names, split_shares
    from dagman.errors import TaskError
    from dagman.store.crops import CropSpec
    from dagman.tasks.finetuning import choose_finetuning
    from dagman.tasks.outcome.response import predict_response
    from dagman.tasks.outcome.time_to_event import OutcomeSettings, predict_outcome

    if (label is None) == (time is None and event is None):
        raise TaskError(
            "needs a response, or a time and an event", where="outcome", do="Give --label COL, or --time COL --event COL"
        )
    if label and method:
        do = "Omit --method, or use dagman classify, which offers linear, knn and finetune"
        raise TaskError("a response is always predicted by a linear probe", where="--method", do=do)
    specs, table = parse_models(context, models_and_table, weights=weights)
    settings = OutcomeSettings(
        methods=split_names(method) or ("cox",),
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
    items, opened = read_items(table, store, label=label, time=time, event=event, clinical=split_names(clinical), **columns)
    predict = predict_response if label else predict_outcome
    run_task(
        "outcome",
        lambda on_part: predict(specs, items, out, settings, store=opened, cache=cache, on_part=on_part),
        out=out,
        as_json=as_json,
        notes=items.notes,
    )
