"""`dagman cluster`: structures grouped by their features, on a map one can hover over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagman.cli.tasks.task_options import (
    AsJson,
    Cache,
    Coordinates,
    CropMm,
    CropSpacing,
    Device,
    Ids,
    MaskLabel,
    ModelsAndTable,
    Out,
    Patient,
    Primary,
    Seed,
    StoreFolder,
    Weights,
)

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman cluster runs/first organs.csv --label label --out organs"


@app.command(epilog=_EXAMPLE)
def run_clustering(
    context: typer.Context,
    models_and_table: ModelsAndTable,
    out: Out,
    label: Annotated[
        str | None, typer.Option(help="Column with the kind of structure; used to evaluate the clusters, not to form them.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV file with the columns id and name, which names the values of label maps; each becomes a structure."),
    ] = None,
    minimum_voxels: Annotated[
        int, typer.Option(min=1, help="Minimum size in voxels of a structure in a label map; smaller ones are excluded.")
    ] = 20,
    map: Annotated[str, typer.Option(help="umap (needs the extra `cluster`) or pca.")] = "umap",
    neighbours: Annotated[int, typer.Option(min=2, help="Number of neighbours in UMAP.")] = 15,
    patient: Patient = "patient",
    ids: Ids = "checked",
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
    """Cluster structures by their frozen features (k-means, HDBSCAN), map them in two dimensions, and evaluate the clusters
    against their labels.

    TABLE has one row per structure (mask, label_value), point or label map. Reports silhouette, nearest-neighbour accuracy
    (across patients), mutual information, Rand index and purity in feature space, and intra- and inter-cluster distances on the
    map. OUT/report.html holds an interactive map that shows the crop of each point.
    """
    from dagman.cli.tasks.printing import run_task
    from dagman.cli.tasks.task_options import parse_models, read_items
    from dagman.errors import SettingsError
    from dagman.store.crops import CropSpec
    from dagman.tables.labels import expand_label_maps, read_label_names
    from dagman.tasks.cluster.clustering import ClusteringSettings, cluster_structures

    if label and labels:
        raise SettingsError("both --label and --labels were given", do="Give a column of kinds, or names of label values")
    specs, table = parse_models(context, models_and_table, weights=weights)
    settings = ClusteringSettings(
        map=map, neighbours=neighbours, primary=primary, seed=seed, crop=CropSpec(crop_mm, crop_spacing), device=device
    )
    columns = {"patient": patient, "mask_label": mask_label, "coordinates": coordinates, "ids": ids}
    items, opened = read_items(table, store, label=label, split=None, **columns)
    if labels:
        items = expand_label_maps(items, read_label_names(labels), minimum_voxels=minimum_voxels)
    run_task(
        "cluster",
        lambda on_part: cluster_structures(specs, items, out, settings, store=opened, cache=cache, on_part=on_part),
        out=out,
        as_json=as_json,
        notes=items.notes,
    )
