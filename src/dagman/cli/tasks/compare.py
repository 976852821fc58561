"""`dagman compare`: one task for several models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagman.cli.tasks.task_options import CropMm, CropSpacing, Ids, LayerDecay, Weights

app = typer.Typer(add_completion=False)

_EXAMPLE = (
    "Example: dagman compare classify runs/first scratch:small radiomics:size nodules.csv --label label --shares 25,50,100 "
    "--repeats 10 --out compared"
)


@app.command(epilog=_EXAMPLE)
def run_comparison(
    task: Annotated[str, typer.Argument(help="classify, outcome, segment, or cluster.")],
    models_and_table: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... TABLE",
            help="Two or more of: a run, an encoder folder, scratch:SIZE, resnet3d:SIZE, monai:PATH, radiomics:size, pixels, "
            "histogram; then the table.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of results.")],
    label: Annotated[str | None, typer.Option(help="Column of the label (classify, cluster) or response (outcome).")] = None,
    time: Annotated[str | None, typer.Option(help="outcome: column of the time to the event or the last follow-up.")] = None,
    event: Annotated[str | None, typer.Option(help="outcome: column, 1 where the event was seen, 0 where censored.")] = None,
    clinical: Annotated[str, typer.Option(help="outcome: clinical columns, comma-separated.")] = "",
    labels: Annotated[str | None, typer.Option(help="segment: structures and values, such as liver=5,kidneys=7+8.")] = None,
    method: Annotated[str, typer.Option(help="Methods of the task, comma-separated; default as in the task's own command.")] = "",
    folds: Annotated[int | None, typer.Option(help="Folds by patient.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Number of repeats, each with new folds.")] = None,
    shares: Annotated[str, typer.Option(help="Shares of the training patients, such as 25,50,100 (percent).")] = "",
    per_class: Annotated[str, typer.Option(help="Numbers of labelled patients per class, such as 1,5,10,20.")] = "",
    draws: Annotated[int | None, typer.Option(min=1, help="Number of few-shot draws in each repeat and fold.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Largest number of epochs of fine-tuning (classify, outcome).")] = None,
    finetuning: Annotated[str | None, typer.Option(help="Fine-tuning preset (classify, outcome): short or paper.")] = None,
    layer_decay: LayerDecay = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of a training (segment).")] = None,
    patient: Annotated[str, typer.Option(help="The table's column of patients.")] = "patient",
    ids: Ids = "checked",
    split: Annotated[str | None, typer.Option(help="The table's column of train, val, test. Default: 'split'.")] = None,
    mask_label: Annotated[int | None, typer.Option(help="The structure's value in every mask of the table.")] = None,
    coordinates: Annotated[str | None, typer.Option(help="Coordinates of the table's points: ras (default) or lps.")] = None,
    crop_mm: CropMm = None,
    crop_spacing: CropSpacing = None,
    store: Annotated[Path | None, typer.Option(help="Store that holds the scans which the table names by id.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of cached feature vectors. Default: OUT/features.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds, draws and fits.")] = 0,
    weights: Weights = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print measures and differences as JSON.")] = False,
) -> None:
    """Run one task for several models on identical items, crops, splits and few-shot draws.

    One table with 95 % intervals over patients, and the difference of the first model to each other one on the same items: DeLong
    for AUC, the paired bootstrap elsewhere, corrected for their number (Holm). OUT/report.html draws them against the labels used.
    """
    from rich.console import Console

    from dagman.cli.tasks.task_options import (
        format_results,
        print_differences,
        print_measures,
        split_counts,
        split_names,
        split_numbers,
    )
    from dagman.reports.tasks.comparison import write_comparison_report
    from dagman.store.crops import CropSpec
    from dagman.tasks.comparison import ComparisonRequest, compare_models
    from dagman.tasks.models import parse_model

    *models, table = models_and_table
    request = ComparisonRequest(
        models=tuple(parse_model(text, weights=weights) for text in models),
        table=Path(table),
        out=out,
        label=label,
        time=time,
        event=event,
        clinical=split_names(clinical) or None,
        labels=labels,
        patient=patient,
        split=split,
        mask_label=mask_label,
        coordinates=coordinates,
        ids=ids,
        methods=split_names(method) or None,
        folds=folds,
        repeats=repeats,
        shares=tuple(share / 100 for share in split_numbers("shares", shares)) or None,
        per_class=split_counts("per-class", per_class) or None,
        draws=draws,
        epochs=epochs,
        finetuning=finetuning,
        layer_decay=layer_decay,
        steps=steps,
        crop=CropSpec(crop_mm, crop_spacing),
        store=store,
        cache=cache,
        seed=seed,
        device=device,
    )
    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    with console.status("reading") as status:
        results = compare_models(task, request, on_part=lambda text: status.update(text))
        page = write_comparison_report(results)
    if as_json:
        typer.echo(format_results(out, page))
        return
    print_measures(console, results.summary, page)
    print_differences(console, results.summary)
