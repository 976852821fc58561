"""`dagman cluster`: structures grouped by their features, on a map one can hover over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagman.cli.tasks.task_options import CropMm, CropSpacing, Ids, ModelsAndTable, Weights

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman cluster runs/first organs.csv --label label --out organs"


@app.command(epilog=_EXAMPLE)
def run_clustering(
    models_and_table: ModelsAndTable,
    out: Annotated[Path, typer.Option(help="Folder of results.")],
    label: Annotated[str | None, typer.Option(help="Column of the kind; used to judge the clusters, never to make them.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV with id and name of the values of label maps: each becomes a structure.")
    ] = None,
    minimum_voxels: Annotated[int, typer.Option(min=1, help="Voxels below which a structure of a label map is left out.")] = 20,
    map: Annotated[str, typer.Option(help="umap (needs the extra `cluster`) or pca.")] = "umap",
    neighbours: Annotated[int, typer.Option(min=2, help="Number of neighbours in UMAP.")] = 15,
    patient: Annotated[str, typer.Option(help="The table's column of patients.")] = "patient",
    ids: Ids = "checked",
    mask_label: Annotated[int | None, typer.Option(help="The structure's value in every mask of the table.")] = None,
    coordinates: Annotated[str, typer.Option(help="Coordinates of the table's points: ras or lps.")] = "ras",
    crop_mm: CropMm = None,
    crop_spacing: CropSpacing = None,
    store: Annotated[Path | None, typer.Option(help="Store that holds the scans which the table names by id.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of cached feature vectors. Default: OUT/features.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of maps and clusters.")] = 0,
    weights: Weights = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the measures as JSON.")] = False,
) -> None:
    """Draw structures on a map by their frozen features, group them by k-means and HDBSCAN, and judge the groups by their names.

    Silhouette, accuracy of nearest neighbours (other patients only), mutual information, Rand index and purity in feature space;
    intra- and inter-cluster distance on the map. OUT/report.html holds the map: each point shows its crop.
    """
    from rich.console import Console

    from dagman.cli.tasks.task_options import format_results, open_store, print_differences, print_measures, split_models
    from dagman.errors import SettingsError
    from dagman.reports.tasks.clustering import write_clustering_report
    from dagman.reports.tasks.comparison import write_comparison_report
    from dagman.store.crops import CropSpec
    from dagman.tables.label_maps import expand_label_maps, read_label_names
    from dagman.tables.table import read_table
    from dagman.tasks.cluster.clustering import ClusteringSettings, cluster_structures
    from dagman.tasks.models import parse_model

    if label and labels:
        raise SettingsError("both --label and --labels were given", do="Give a column of kinds, or names of label values")
    models, table = split_models("cluster", models_and_table)
    specs = [parse_model(text, weights=weights) for text in models]
    settings = ClusteringSettings(map=map, neighbours=neighbours, seed=seed, crop=CropSpec(crop_mm, crop_spacing), device=device)
    opened, stored_ids = open_store(store)
    read = read_table(
        table,
        label=label,
        patient=patient,
        split=None,
        mask_label=mask_label,
        coordinates=coordinates,
        known_ids=stored_ids,
        ids=ids,
    )
    if labels:
        read = expand_label_maps(read, read_label_names(labels), minimum_voxels=minimum_voxels)
    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    with console.status("reading") as status:
        results = cluster_structures(specs, read, out, settings, store=opened, cache=cache, on_part=status.update)
        page = write_clustering_report(results) if len(specs) == 1 else write_comparison_report(results)
    if as_json:
        typer.echo(format_results(out, page))
    else:
        print_measures(console, results.summary, page)
        print_differences(console, results.summary)
