"""`dagman classify`: a label from a table's items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagman.cli.tasks.task_options import CropMm, CropSpacing, Finetuning, Ids, LayerDecay, ModelsAndTable, Weights

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman classify runs/first nodules.csv --label label --repeats 10 --shares 25,50,100 --out malignancy"


@app.command(epilog=_EXAMPLE)
def run_classification(
    models_and_table: ModelsAndTable,
    label: Annotated[str, typer.Option(help="Column of the label; two or more classes.")],
    out: Annotated[Path, typer.Option(help="Folder of results.")],
    method: Annotated[str, typer.Option(help="One or more of linear, knn, finetune, comma-separated.")] = "linear,knn",
    folds: Annotated[int, typer.Option(help="Number of folds by patient; a column 'split' replaces them.")] = 5,
    repeats: Annotated[int, typer.Option(help="Number of repeats, each with new folds.")] = 1,
    shares: Annotated[str, typer.Option(help="Shares of the training patients, such as 25,50,100 (percent).")] = "100",
    per_class: Annotated[str, typer.Option(help="Numbers of labelled patients per class, such as 1,5,10,20.")] = "",
    draws: Annotated[int, typer.Option(min=1, help="Number of few-shot draws in each repeat and fold.")] = 1,
    finetuning: Finetuning = "short",
    layer_decay: LayerDecay = None,
    patient: Annotated[str, typer.Option(help="The table's column of patients.")] = "patient",
    ids: Ids = "checked",
    split: Annotated[str, typer.Option(help="The table's column of train, val, test, if it has one.")] = "split",
    mask_label: Annotated[int | None, typer.Option(help="The structure's value in every mask of the table.")] = None,
    coordinates: Annotated[str, typer.Option(help="Coordinates of the table's points: ras or lps.")] = "ras",
    crop_mm: CropMm = None,
    crop_spacing: CropSpacing = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Largest number of epochs of fine-tuning. Default: 20.")] = None,
    store: Annotated[Path | None, typer.Option(help="Store that holds the scans which the table names by id.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of cached feature vectors. Default: OUT/features.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds, draws and fits.")] = 0,
    weights: Weights = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the measures as JSON.")] = False,
) -> None:
    """Classify items out of fold, by patient: a linear probe and k-NN on frozen features, or fine-tuning.

    AUC, accuracy, balanced accuracy, sensitivity, specificity and Brier score with 95 % intervals over patients, on all labels and
    on few. OUT/report.html shows curves and single items; OUT/model is kept for `dagman predict`.
    """
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
    from dagman.reports.tasks.classification import write_classification_report
    from dagman.reports.tasks.comparison import write_comparison_report
    from dagman.store.crops import CropSpec
    from dagman.tables.table import read_table
    from dagman.tasks.classify.classification import ClassificationSettings, classify_items
    from dagman.tasks.finetuning import choose_finetuning
    from dagman.tasks.models import parse_model

    models, table = split_models("classify", models_and_table)
    specs = [parse_model(text, weights=weights) for text in models]
    settings = ClassificationSettings(
        methods=split_names(method),
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
        patient=patient,
        split=split,
        mask_label=mask_label,
        coordinates=coordinates,
        known_ids=stored_ids,
        ids=ids,
    )
    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    with console.status("reading") as status:
        results = classify_items(specs, read, out, settings, store=opened, cache=cache, on_part=status.update)
        page = write_classification_report(results) if len(specs) == 1 else write_comparison_report(results)
    if as_json:
        typer.echo(format_results(out, page))
    else:
        print_measures(console, results.summary, page)
        print_differences(console, results.summary)
