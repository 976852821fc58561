"""Task 4 of the paper: test whether structures of one kind cluster in an encoder's features, without training on their labels.

Features are standardised and reduced to principal components (`survival_models.fit_projection`), from which clusters, neighbours
and maps are computed. Labels are used only for evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import silhouette_samples, silhouette_score

from dagman.errors import TaskError
from dagman.evaluation.clustering_metrics import (
    explain_trivial,
    judge_neighbours,
    measure_cluster_distances,
    measure_mutual_information,
    measure_purity,
    measure_rand_index,
)
from dagman.evaluation.measures import find_measure
from dagman.evaluation.results import Comparison, Measurement, Results, Summary, choose_endpoint, correct_comparisons
from dagman.evaluation.statistics import Interval, bootstrap_difference, bootstrap_interval, bound_edge
from dagman.notes import Note, inform, warn
from dagman.randomness import address
from dagman.records.counts import count_noun
from dagman.records.names import suggest_name
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.tables.table import Table
from dagman.tasks.cluster.examples import choose_central
from dagman.tasks.cluster.structure_maps import CLOSENESS, NEIGHBOURS, count_neighbours, map_components, map_neighbours
from dagman.tasks.cluster.thumbnails import COLUMNS, SIDE, draw_sheet, write_sheet
from dagman.tasks.inputs.examples import write_examples
from dagman.tasks.inputs.model_inputs import ModelInput, TaskInputs, warn_of_overlap
from dagman.tasks.models import ModelSpec
from dagman.tasks.pipeline import Evaluation, ItemRun, Notify, run_pipeline
from dagman.tasks.survival_models import fit_projection

Floats = NDArray[np.float64]

MAPS = ("umap", "pca")
SHEET = "crops.png"
_LARGEST_GUESS = 12
"""Maximum number of clusters tried without labels."""
_ASKED = 5
"""Number of neighbours for the nearest-neighbour accuracy."""
_AGREEMENTS = {"nmi": measure_mutual_information, "ari": measure_rand_index, "purity": measure_purity}


@dataclass(frozen=True, kw_only=True)
class ClusteringSettings:
    """Settings of a clustering and its evaluation."""

    map: str = "umap"
    "One of MAPS; principal components are always mapped as well."
    neighbours: int = NEIGHBOURS
    "Number of neighbours of UMAP."
    seed: int = 0
    crop: CropSpec = FROM_SIZE
    resamples: int = 1000
    "Number of bootstrap resamples."
    primary: str = ""
    "Primary endpoint in the format of `choose_endpoint`; empty: none, and all differences are corrected for their number."
    device: str = "auto"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.map not in MAPS:
            raise TaskError(f"unknown map '{self.map}'", do=suggest_name(self.map, MAPS))


@dataclass(frozen=True, kw_only=True, eq=False)
class Clustered:
    """Structures of one model: components of their features, coordinates on each map, and clusters (-1: noise)."""

    model: str
    components: Floats
    maps: dict[str, Floats]
    clusters: dict[str, NDArray[np.int64]]


def cluster_structures(
    models: Sequence[ModelSpec],
    table: Table,
    out: str | Path,
    settings: ClusteringSettings | None = None,
    *,
    store: Store | None = None,
    cache: str | Path | None = None,
    on_part: Callable[[str], None] | None = None,
) -> Results:
    """Map and cluster a table's structures and write the results folder, except for the report.

    Arguments are those of `classify_items`. Labels are optional; without them, clusters are evaluated only by their silhouette.

    Raises:
        TaskError: There are fewer than four structures.
    """
    settings, out = settings or ClusteringSettings(), Path(out)
    run = ItemRun(models=models, table=table, out=out, store=store, cache=cache, notify=on_part)
    return run_pipeline("cluster", run, settings, lambda inputs, notify: _cluster(inputs, out, settings, store, notify))


def group_structures(model: ModelInput, table: Table, settings: ClusteringSettings) -> Clustered:
    """Map and cluster one model's features; k-means has one cluster per label, or the number with the best silhouette."""
    if model.features is None:
        raise ValueError("no features were needed")
    components = fit_projection(model.features).encode(model.features)
    maps = {"pca": map_components(components)}
    if settings.map == "umap":
        maps["umap"] = map_neighbours(components, neighbours=settings.neighbours, seed=settings.seed)
    count = len(table.classes) or _guess_clusters(components, settings.seed)
    return Clustered(
        model=model.name,
        components=components,
        maps=maps,
        clusters={"kmeans": _find_means(components, count, settings.seed), "hdbscan": _find_dense(components)},
    )


def measure_clustering(found: Clustered, table: Table, settings: ClusteringSettings) -> list[Measurement]:
    """Compute every measure with an interval over patients; maps and clusters are not recomputed in a resample.

    With labels, the measures are silhouette and neighbour accuracy in feature space, agreement of clusters with labels, and
    distances in the maps as in the paper's Table 2. Without labels, silhouette and distances are those of the k-means clusters.
    """
    groups = table.codes if table.classes else found.clusters["kmeans"]
    trivial, judged = explain_trivial(groups, table.patients, called=_name_group(table)), judge_structures(found, table)
    measured: list[Measurement] = []

    def add(name: str, method: str, metric: Callable[..., float], *arrays: NDArray, reason: str | None = None) -> None:
        if reason := reason or trivial.get(name):
            interval = _leave_undefined(table, reason)
        else:
            interval = bootstrap_interval(metric, *arrays, patients=table.patients, draws=settings.resamples, seed=settings.seed)
        if name == "neighbour_accuracy" and name in judged:
            interval = bound_edge(interval, judged[name], table.patients)
        measured.append(_state(name, found.model, method, interval))

    for name, points in found.maps.items():
        add("intra_distance", name, lambda p, g: measure_cluster_distances(p, g).intra, points, groups)
        add("inter_distance", name, lambda p, g: measure_cluster_distances(p, g).inter, points, groups)
    for name in ("silhouette", "neighbour_accuracy") if table.classes else ("silhouette",):
        add(name, "features", _average, judged.get(name, np.empty(0)))
    for method, clusters in found.clusters.items() if table.classes else ():
        none = "no cluster was found" if np.all(clusters < 0) else None
        for name, metric in _AGREEMENTS.items():
            add(name, method, metric, table.codes, clusters, reason=trivial.get(name, none))
    return measured


def judge_structures(found: Clustered, table: Table) -> dict[str, Floats]:
    """Compute each structure's silhouette and, with labels, whether its neighbours of other patients predict its label (n each)."""
    groups = table.codes if table.classes else found.clusters["kmeans"]
    trivial = explain_trivial(groups, table.patients)
    judged: dict[str, Floats] = {}
    if "silhouette" not in trivial:
        judged["silhouette"] = np.asarray(silhouette_samples(found.components, groups), dtype=np.float64)
    if table.classes and "neighbour_accuracy" not in trivial:
        right = judge_neighbours(found.components, table.codes, patients=table.patients, neighbours=_ASKED)
        judged["neighbour_accuracy"] = right.astype(np.float64)
    return judged


def compare_clusterings(found: Sequence[Clustered], table: Table, settings: ClusteringSettings) -> list[Comparison]:
    """Compare silhouette and neighbour accuracy of the first model with each other one, paired."""
    judged = [judge_structures(one, table) for one in found]
    made: list[Comparison] = []
    for other, values in zip(found[1:], judged[1:], strict=True):
        for name in (name for name in judged[0] if name in values):
            difference = bootstrap_difference(
                _average_second,
                np.zeros(len(table)),
                judged[0][name],
                values[name],
                patients=table.patients,
                draws=settings.resamples,
                seed=settings.seed,
            )
            made.append(Comparison(name=name, first=found[0].model, second=other.model, method="features", difference=difference))
    return made


def _cluster(inputs: TaskInputs, out: Path, settings: ClusteringSettings, store: Store | None, notify: Notify) -> Evaluation:
    if len(inputs.table) < 4:
        what = count_noun(len(inputs.table), "structure is too few for a map", "structures are too few for a map")
        raise TaskError(what, do="Give at least 4, preferably some dozens")
    endpoint = choose_endpoint(
        settings.primary,
        measures=["silhouette", "neighbour_accuracy"],
        models=[model.name for model in inputs.models],
        methods=["features"],
        subsets=["100%"],
    )
    found = []
    for model in inputs.models:
        notify(f"{model.name}: maps and clusters")
        found.append(group_structures(model, inputs.table, settings))
    notify("images of the crops")
    tiles = _draw_crops(inputs, out, settings, store)
    central = choose_central(inputs.table.items, found[0].components, found[0].clusters["kmeans"])
    write_examples(out, inputs, central, model=found[0].model, method="k-means", store=store)
    notify("intervals")
    table = inputs.table
    labels = table.codes if table.classes else None
    summary = Summary(
        task="cluster",
        classes=table.classes,
        measurements=tuple(m for one in found for m in measure_clustering(one, table, settings)),
        comparisons=correct_comparisons(compare_clusterings(found, table, settings), endpoint),
        notes=(*warn_of_overlap(inputs, np.arange(len(table))), *inputs.notes, *_explain(inputs, found, settings)),
        extra={
            "map": settings.map,
            "neighbours": count_neighbours(len(table), settings.neighbours),
            "patients": len(set(table.patients.tolist())),
            "counts": {} if labels is None else {name: int(np.sum(labels == code)) for code, name in enumerate(table.classes)},
            "found": {one.model: _count_clusters(one) for one in found},
            "tiles": {"names": list(tiles), "side": SIDE, "columns": COLUMNS},
        },
    )
    return Evaluation(rows=[row for one in found for row in _list_rows(one, table, settings)], summary=summary)


def _name_group(table: Table) -> str:
    return "kind" if table.classes else "cluster"


def _leave_undefined(table: Table, reason: str) -> Interval:
    nan, patients = float("nan"), len(set(table.patients.tolist()))
    return Interval(value=nan, low=nan, high=nan, level=0.95, items=len(table), patients=patients, how=f"n/a: {reason}")


def _draw_crops(inputs: TaskInputs, out: Path, settings: ClusteringSettings, store: Store | None) -> tuple[str, ...]:
    sheet = draw_sheet(inputs.table.items, store=store, crop=inputs.crop, seed=settings.seed)
    write_sheet(out / SHEET, sheet)
    return sheet.names


def _find_means(components: Floats, count: int, seed: int) -> NDArray[np.int64]:
    count = min(count, len(np.unique(components, axis=0)))
    model = KMeans(n_clusters=count, n_init=10, random_state=address(seed, "kmeans") % 2**31)
    return np.asarray(model.fit_predict(components), dtype=np.int64)


def _find_dense(components: Floats) -> NDArray[np.int64]:
    smallest = int(np.clip(len(components) // 50, 5, 25))
    if len(components) < 2 * smallest:
        return np.full(len(components), -1, dtype=np.int64)
    return np.asarray(HDBSCAN(min_cluster_size=smallest, min_samples=2, copy=True).fit_predict(components), dtype=np.int64)


def _guess_clusters(components: Floats, seed: int) -> int:
    """Choose the number of k-means clusters with the highest mean silhouette."""
    counts = range(2, min(_LARGEST_GUESS, len(components) - 1) + 1)
    scores = {count: silhouette_score(components, _find_means(components, count, seed)) for count in counts}
    return max(scores, key=lambda count: scores[count])


def _count_clusters(found: Clustered) -> dict[str, Any]:
    dense = found.clusters["hdbscan"]
    return {
        "kmeans": len(np.unique(found.clusters["kmeans"])),
        "hdbscan": len(np.unique(dense[dense >= 0])),
        "alone": int(np.sum(dense < 0)),
        "components": found.components.shape[1],
    }


def _explain(inputs: TaskInputs, found: Sequence[Clustered], settings: ClusteringSettings) -> list[Note]:
    chosen = [
        f"features are standardised and reduced to {', '.join(str(one.components.shape[1]) for one in found)} principal components",
        "distances on a map are Euclidean, in arbitrary units that differ between maps: intra is the mean distance of a "
        "cluster's points to their centroid, inter the mean distance between centroids; the paper defines neither",
        f"nearest-neighbour accuracy uses the {_ASKED} nearest structures of other patients",
    ]
    if settings.map == "umap":
        used = count_neighbours(len(inputs.table), settings.neighbours)
        fewer = "" if used == settings.neighbours else f" ({settings.neighbours} were requested)"
        chosen.append(f"UMAP: {used} neighbours{fewer}, minimum distance {CLOSENESS:g}, Euclidean, seed {settings.seed}")
    notes = [inform(text) for text in chosen]
    if inputs.table.classes:
        trivial = explain_trivial(inputs.table.codes, inputs.table.patients)
        for reason in dict.fromkeys(trivial.values()):
            names = ", ".join(find_measure(name).label for name, own in trivial.items() if own == reason)
            notes.append(warn(f"n/a: {names}, as {reason}"))
    if not inputs.table.classes:
        notes.append(inform("no labels were given: clusters are evaluated only by their silhouette"))
    if inputs.crop.spacing is not None:
        notes.append(inform(f"crops have a voxel size of {inputs.crop.spacing:.3g} mm"))
    return notes


def _list_rows(found: Clustered, table: Table, settings: ClusteringSettings) -> list[dict[str, Any]]:
    right = judge_structures(found, table).get("neighbour_accuracy")
    return [
        {
            "item": item.name,
            "patient": item.patient,
            "repeat": 0,
            "fold": 0,
            "draw": 0,
            "subset": "100%",
            "model": found.model,
            "method": settings.map,
            "label": item.label,
            **{f"{name}_{axis}": points[i, j] for name, points in found.maps.items() for j, axis in enumerate("xy")},
            **{name: int(clusters[i]) for name, clusters in found.clusters.items()},
            **({} if right is None else {"neighbours_right": int(right[i])}),
        }
        for i, item in enumerate(table.items)
    ]


def _state(name: str, model: str, method: str, interval: Interval) -> Measurement:
    return Measurement(name=name, model=model, method=method, interval=interval)


def _average(values: NDArray) -> float:
    return float(np.mean(values))


def _average_second(labels: NDArray, values: NDArray) -> float:
    return float(np.mean(values))
