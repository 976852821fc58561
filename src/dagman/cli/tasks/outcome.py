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
    time: Annotated[str | None, typer.Option(help="Column of the time from the scan to the event or the last follow-up.")] = None,
    event: Annotated[str | None, typer.Option(help="Column: 1 where the event was seen, 0 where censored.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of a response, in place of time and event.")] = None,
    clinical: Annotated[str, typer.Option(help="Clinical columns, comma-separated: judged alone and with the image.")] = "",
    method: Annotated[str, typer.Option(help="One or more of cox, forest, finetune; a response has the linear probe.")] = "",
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
    """Predict a response, or time and event, out of fold: from the image alone, clinical columns alone, and both.

    TABLE has one row for each scan or lesion; those of one patient are pooled. Time and event: Cox's elastic net or a random
    survival forest on frozen features, or fine-tuning with Cox's loss; Harrell's and Uno's C, integrated Brier score,
    time-dependent AUC, calibration, and Kaplan-Meier curves of risk groups whose cut is fixed inside the training fold. A response:
    a linear probe, with what dagman classify reports. Missing clinical values are counted, and imputed within each fold.
    """
    from dagman.cli.tasks.printing import run_task
    from dagman.cli.tasks.task_options import parse_models, read_items, split_counts, split_names, split_shares
    from dagman.errors import TaskError
    from dagman.store.crops import CropSpec
    from dagman.tasks.finetuning import choose_finetuning
    from dagman.tasks.outcome.response import predict_response
    from dagman.tasks.outcome.time_to_event import OutcomeSettings, predict_outcome

    if (label is None) == (time is None and event is None):
        raise TaskError("needs a response, or time and event", where="outcome", do="Give --label COL, or --time COL --event COL")
    if label and method:
        do = "Leave --method out, or use dagman classify, which has linear, knn and finetune"
        raise TaskError("a response is predicted by a linear probe", where="--method", do=do)
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
    )
