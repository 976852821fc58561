"""`dagman outcome`: a response, or time and event, from a table's items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagman.cli.tasks.task_options import CropMm, CropSpacing, Finetuning, Ids, LayerDecay, ModelsAndTable, Weights

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman outcome runs/first outcome.csv --time time --event event --clinical age,grade --out outcome"


@app.command(epilog=_EXAMPLE)
def run_outcome(
    models_and_table: ModelsAndTable,
    out: Annotated[Path, typer.Option(help="Folder of results.")],
    time: Annotated[str | None, typer.Option(help="Column of the time from the scan to the event or the last follow-up.")] = None,
    event: Annotated[str | None, typer.Option(help="Column: 1 where the event was seen, 0 where censored.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of a response, in place of time and event.")] = None,
    clinical: Annotated[str, typer.Option(help="Clinical columns, comma-separated: judged alone and with the image.")] = "",
    method: Annotated[str, typer.Option(help="One or more of cox, forest, finetune; a response has the linear probe.")] = "",
    folds: Annotated[int, typer.Option(help="Number of folds by patient; a column 'split' replaces them.")] = 5,
    repeats: Annotated[int, typer.Option(help="Number of repeats, each with new folds.")] = 5,
    shares: Annotated[str, typer.Option(help="Shares of the training patients, such as 25,50,100 (percent).")] = "100",
    per_class: Annotated[str, typer.Option(help="Few-shot: numbers of training patients with the event; as many without.")] = "",
    draws: Annotated[int, typer.Option(min=1, help="Number of few-shot draws in each repeat and fold.")] = 1,
    epochs: Annotated[int | None, typer.Option(min=1, help="Largest number of epochs of fine-tuning. Default: 20.")] = None,
    finetuning: Finetuning = "short",
    layer_decay: LayerDecay = None,
    patient: Annotated[str, typer.Option(help="The table's column of patients.")] = "patient",
    ids: Ids = "checked",
    split: Annotated[str, typer.Option(help="The table's column of train, val, test, if it has one.")] = "split",
    mask_label: Annotated[int | None, typer.Option(help="The structure's value in every mask of the table.")] = None,
    coordinates: Annotated[str, typer.Option(help="Coordinates of the table's points: ras or lps.")] = "ras",
    crop_mm: CropMm = None,
    crop_spacing: CropSpacing = None,
    store: Annotated[Path | None, typer.Option(help="Store that holds the scans which the table names by id.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of cached feature vectors. Default: OUT/features.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds, draws and fits.")] = 0,
    weights: Weights = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the measures as JSON.")] = False,
) -> None:
    """Predict a response, or time and event, out of fold: from the image alone, clinical columns alone, and both.

    Time and event: Cox's elastic net or a random survival forest on frozen features, or fine-tuning with Cox's loss; Harrell's
    and Uno's C, integrated Brier score, time-dependent AUC, calibration, and Kaplan-Meier curves of risk groups whose cut is
    fixed inside the training fold. A response: a linear probe, with what dagman classify reports. Lesions of one patient are
    pooled. Missing clinical values are counted, and imputed within each fold.
    """
    from dagman.errors import TaskError

    if (label is None) == (time is None and event is None):
        raise TaskError("needs a response, or time and event", where="outcome", do="Give --label COL, or --time COL --event COL")
    if label and method:
        do = "Leave --method out, or use dagman classify, which has linear, knn and finetune"
        raise TaskError("a response is predicted by a linear probe", where="--method", do=do)
    from rich.console import Console

    from dagman.cli.tasks.task_options import (
        format_results,
        open_store,
        print_differences,
        print_measures,
        split_counts,
        split_models,
        split_names,
        split_numbers,
    )
    from dagman.reports.tasks.comparison import write_comparison_report
    from dagman.reports.tasks.outcome import write_outcome_report
    from dagman.store.crops import CropSpec
    from dagman.tables.table import read_table
    from dagman.tasks.finetuning import choose_finetuning
    from dagman.tasks.models import parse_model
    from dagman.tasks.outcome.response import predict_response
    from dagman.tasks.outcome.time_to_event import OutcomeSettings, predict_outcome

    predict = predict_response if label else predict_outcome
    models, table = split_models("outcome", models_and_table)
    specs = [parse_model(text, weights=weights) for text in models]
    settings = OutcomeSettings(
        methods=split_names(method) or ("cox",),
        folds=folds,
        repeats=repeats,
        shares=tuple(share / 100 for share in split_numbers("shares", shares)),
        per_class=split_counts("per-class", per_class),
        draws=draws,
        seed=seed,
        crop=CropSpec(crop_mm, crop_spacing),
        device=device,
        finetuning=choose_finetuning(finetuning, epochs=epochs, layer_decay=layer_decay),
    )
    opened, stored_ids = open_store(store)
    read = read_table(
        table,
        label=label,
        time=time,
        event=event,
        clinical=split_names(clinical),
        patient=patient,
        split=split,
        mask_label=mask_label,
        coordinates=coordinates,
        known_ids=stored_ids,
        ids=ids,
    )
    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    with console.status("reading") as status:
        results = predict(specs, read, out, settings, store=opened, cache=cache, on_part=lambda text: status.update(text))
        page = write_outcome_report(results) if len(specs) == 1 else write_comparison_report(results)
    if as_json:
        typer.echo(format_results(out, page))
    else:
        print_measures(console, results.summary, page)
        print_differences(console, results.summary)
