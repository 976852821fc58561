"""`dagman classify`: a label from a table's items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagman.cli.tasks.task_options import CropMm, CropSpacing, Ids, Weights

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman classify runs/first nodules.csv --label label --repeats 10 --shares 25,50,100 --out malignancy"


@app.command(epilog=_EXAMPLE)
def run_classification(
    model: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER",
            help="A run, an encoder folder, scratch:SIZE, resnet3d:SIZE, monai:PATH, radiomics:size, pixels, or histogram.",
        ),
    ],
    table: Annotated[Path, typer.Argument(help="CSV, Parquet or Excel: a row a scan, a mask, or a point (center_x_mm, ...).")],
    label: Annotated[str, typer.Option(help="Column of the label; two or more classes.")],
    out: Annotated[Path, typer.Option(help="Folder of results.")],
    method: Annotated[str, typer.Option(help="Of linear, knn, finetune, comma-separated.")] = "linear,knn",
    folds: Annotated[int, typer.Option(help="Folds by patient; a column 'split' takes their place.")] = 5,
    repeats: Annotated[int, typer.Option(help="Repeats with other folds.")] = 1,
    shares: Annotated[str, typer.Option(help="Shares of the training patients, such as 25,50,100 (percent).")] = "100",
    per_class: Annotated[str, typer.Option(help="Labelled patients a class, such as 1,5,10,20.")] = "",
    draws: Annotated[int, typer.Option(min=1, help="Few-shot draws in each repeat and fold.")] = 1,
    patient: Annotated[str, typer.Option(help="The table's column of patients.")] = "patient",
    ids: Ids = "checked",
    split: Annotated[str, typer.Option(help="The table's column of train, val, test, if it has one.")] = "split",
    mask_label: Annotated[int | None, typer.Option(help="The structure's value in every mask of the table.")] = None,
    coordinates: Annotated[str, typer.Option(help="Of the table's points: ras or lps.")] = "ras",
    crop_mm: CropMm = None,
    crop_spacing: CropSpacing = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs of fine-tuning. Default: 20.")] = None,
    store: Annotated[Path | None, typer.Option(help="Store that holds the scans which the table names by id.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder in which vectors are kept by content. Default: OUT/features.")] = None,
    seed: Annotated[int, typer.Option(help="Of folds, draws and fits.")] = 0,
    weights: Weights = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the measures as JSON.")] = False,
) -> None:
    """Classify items out of fold, by patient: a linear probe and k-NN on frozen features, or fine-tuning.

    AUC, accuracy, balanced accuracy, sensitivity, specificity and Brier score with 95 % intervals over patients, on all labels and
    on few. OUT/report.html shows curves and single items; OUT/model is kept for `dagman predict`.
    """
    from rich.console import Console

    from dagman.cli.tasks.task_options import format_results, open_store, print_measures, split_counts, split_names, split_numbers
    from dagman.reports.tasks.classification import write_classification_report
    from dagman.store.crops import CropSpec
    from dagman.tables.table import read_table
    from dagman.tasks.classify.classification import ClassificationSettings, classify_items
    from dagman.tasks.finetuning import FinetuneSettings
    from dagman.tasks.models import parse_model

    spec = parse_model(model, weights=weights)
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
        finetuning=FinetuneSettings(epochs=epochs) if epochs else FinetuneSettings(),
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
        results = classify_items([spec], read, out, settings, store=opened, cache=cache, on_part=status.update)
        page = write_classification_report(results)
    if as_json:
        typer.echo(format_results(out, page))
    else:
        print_measures(console, results.summary, page)
