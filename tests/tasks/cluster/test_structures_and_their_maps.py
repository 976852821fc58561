"""Proves that label maps become items, that items have pictures, and that maps and clusters are those of the features."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from dagman.encoder.items import FeatureTable
from dagman.errors import MissingExtraError, TableError, TaskError
from dagman.notes import warn
from dagman.reports.names import explain_intervals
from dagman.reports.tasks.clustering import write_clustering_report
from dagman.store.crops import CropSpec
from dagman.tables.labels import expand_label_maps, read_label_names
from dagman.tables.table import read_table
from dagman.tasks.cluster.clustering import (
    ClusteringSettings,
    cluster_structures,
    compare_clusterings,
    group_structures,
    measure_clustering,
)
from dagman.tasks.cluster.examples import choose_central
from dagman.tasks.cluster.structure_maps import count_neighbours, map_components, map_neighbours
from dagman.tasks.cluster.thumbnails import SIDE, draw_tile
from dagman.tasks.inputs.examples import read_examples
from dagman.tasks.inputs.item_crops import ItemCrop
from dagman.tasks.inputs.model_inputs import ModelInput, gather_inputs
from dagman.tasks.models import parse_model

_AGREEING = {"nmi", "ari", "purity"}
_SPREAD = {"silhouette", "intra_distance", "inter_distance"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients with a label map each: 1 a bright ball, 2 a dark one, 3 a speck, 9 a label without a name."""
    folder = tmp_path_factory.mktemp("structures")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    x, y, z = np.meshgrid(np.arange(48), np.arange(40), np.arange(32), indexing="ij")
    rows = ["scan,mask,patient"]
    for number in range(6):
        random = np.random.default_rng(number)
        body = ((x - 24) / 20) ** 2 + ((y - 20) / 16) ** 2 < 1
        voxels = np.where(body, 0.0, -1000.0)
        labels = np.zeros(voxels.shape, dtype=np.int16)
        for value, level, place in ((1, 300, 14), (2, -300, 32)):
            ball = (x - place) ** 2 + (y - 20) ** 2 + (z - 16) ** 2 < random.integers(16, 36)
            voxels[ball], labels[ball] = level, value
        labels[24, 20, 2:5] = 3
        labels[24, 20, 28:31] = 9
        voxels += random.normal(0, 15, voxels.shape)
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), affine), folder / f"scan{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / f"labels{number}.nii.gz")
        rows.append(f"scan{number}.nii.gz,labels{number}.nii.gz,p{number}")
    (folder / "maps.csv").write_text("\n".join(rows) + "\n")
    (folder / "labels.csv").write_text("id,name\n1,bright\n2,dark\n3,speck\n4,absent\n")
    return folder


def _blobs(seed: int = 0, patients: int = 10) -> tuple[np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 40)) * 3
    features = np.concatenate([centres + random.normal(size=(3, 40)) for _ in range(patients)])
    return features, ["abc"[i % 3] for i in range(3 * patients)]


@pytest.fixture
def table(tmp_path: Path):
    features, labels = _blobs()
    for number in range(10):
        (tmp_path / f"{number}.nii").touch()
    rows = [f"{i // 3}.nii,{i % 3 + 1},p{i // 3},{label}" for i, label in enumerate(labels)]
    (tmp_path / "t.csv").write_text("\n".join(["scan,label_value,patient,kind", *rows]))
    return read_table(tmp_path / "t.csv", label="kind"), features


def _group(table, features, **settings):
    chosen = ClusteringSettings(map="pca", resamples=50, **settings)
    model = ModelInput(name="m", spec=parse_model("pixels"), encoder=None, features=features.astype(np.float32))
    return group_structures(model, table, chosen), chosen


def test_each_named_label_that_is_large_enough_becomes_an_item(cohort):
    table = expand_label_maps(read_table(cohort / "maps.csv"), read_label_names(cohort / "labels.csv"), minimum_voxels=4)
    assert table.classes == ("bright", "dark")
    assert table.names[:3] == ["scan0:bright", "scan0:dark", "scan1:bright"]
    assert [item.label_value for item in table.items[:2]] == [1, 2]
    assert [item.index for item in table.items] == list(range(12))
    assert warn("label values without a name are excluded: 9") in table.notes
    assert any(note.text.startswith("structures of fewer than 4 voxels are excluded: scan0:speck (3)") for note in table.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,name\n1,a\n1,b\n", "label 1 is 'a' and 'b' in row 2"),
        ("id,name\n1.5,a\n", "a label lacks its name or a whole number as its id in row 1"),
        ("id,nme\n1,a\n", "has no column 'name'. Nearest: nme"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(tmp_path, text, said):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(TableError, match=said.replace(".", r"\.")):
        read_label_names(tmp_path / "labels.csv")


def test_a_label_may_be_named_once_a_map(tmp_path):
    (tmp_path / "labels.csv").write_text("mask,id,name\na,1,aorta\na,2,liver\nb,1,aorta\n")
    assert read_label_names(tmp_path / "labels.csv") == {1: "aorta", 2: "liver"}


def test_a_map_of_chances_is_left_out_in_words(cohort, tmp_path):
    rows = (cohort / "maps.csv").read_text().splitlines()
    image = nibabel.load(cohort / "labels0.nii.gz")
    chances = np.asarray(image.dataobj, dtype=np.float32) * np.float32(0.43)
    nibabel.save(nibabel.Nifti1Image(chances, image.affine), tmp_path / "chances.nii.gz")
    rows[1] = rows[1].replace("labels0.nii.gz", str(tmp_path / "chances.nii.gz"))
    absolute = [rows[0], *(f"{cohort}/{row}".replace(",labels", f",{cohort}/labels") for row in rows[1:])]
    (tmp_path / "maps.csv").write_text("\n".join(absolute) + "\n")
    table = expand_label_maps(read_table(tmp_path / "maps.csv"), read_label_names(cohort / "labels.csv"), minimum_voxels=4)
    assert {item.patient for item in table.items} == {f"p{number}" for number in range(1, 6)}
    assert sum("mask chances.nii.gz holds values that are not whole numbers" in note.text for note in table.notes) == 1


def test_maps_without_named_structures_or_of_one_kind_are_refused(cohort):
    table = read_table(cohort / "maps.csv")
    with pytest.raises(TableError, match="contain no usable structure"):
        expand_label_maps(table, {77: "x"})
    with pytest.raises(TableError, match="only one kind of structure"):
        expand_label_maps(table, {1: "bright"})


def test_a_tile_shows_the_slice_with_most_of_the_structure_and_its_outline():
    voxels = np.full((32, 32, 32), -1000, dtype=np.int16)
    inside = np.zeros(voxels.shape, dtype=bool)
    inside[4:12, 10:20, 20] = True
    voxels[:, :, 20] = 40
    tile = draw_tile(ItemCrop(voxels=voxels, inside=inside, modality="CT", spacing=1.0))
    assert tile.shape == (SIDE, SIDE, 3)
    colored = (tile.max(axis=2) > tile.min(axis=2)).nonzero()
    # The patient's left, low x in RAS, is on the right.
    assert colored[1].mean() > SIDE / 2
    assert (tile[0, 0] == tile[0, 0, 0]).all()
    assert 120 < tile[0, 0, 0] < 135


def test_components_are_a_rotation_of_the_points_with_a_settled_sign():
    points = np.random.default_rng(0).normal(size=(20, 2))
    found = map_components(points)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert np.linalg.norm(found[:, None] - found[None], axis=2) == pytest.approx(distances)
    assert map_components(-points) == pytest.approx(-found) or map_components(-points) == pytest.approx(found)
    assert map_components(np.ones((3, 1))).shape == (3, 2)


def test_clusters_of_clear_kinds_are_the_kinds(table):
    items, features = table
    found, settings = _group(items, features)
    measured = {(m.name, m.method): m.interval for m in measure_clustering(found, items, settings)}
    assert measured["ari", "kmeans"].value == pytest.approx(1)
    assert measured["purity", "hdbscan"].value > 0.9
    assert measured["neighbour_accuracy", "features"].value == 1
    assert measured["silhouette", "features"].value > 0.3
    assert measured["intra_distance", "pca"].value < measured["inter_distance", "pca"].value
    assert all(interval.patients == 10 for interval in measured.values())


def test_permuted_names_give_chance(table):
    items, features = table
    found, settings = _group(items, features[np.random.default_rng(1).permutation(len(features))])
    measured = {(m.name, m.method): m.interval.value for m in measure_clustering(found, items, settings)}
    assert measured["ari", "kmeans"] == pytest.approx(0, abs=0.15)
    assert measured["neighbour_accuracy", "features"] < 0.6


def test_a_patient_is_never_its_own_neighbour(table):
    items, _ = table
    # Features that say who the patient is and nothing else.
    random = np.random.default_rng(0)
    own = np.repeat(random.normal(size=(10, 8)) * 10, 3, axis=0) + random.normal(size=(30, 8)) * 0.01
    found, settings = _group(items, own)
    measured = {m.name: m.interval.value for m in measure_clustering(found, items, settings) if m.method == "features"}
    assert measured["neighbour_accuracy"] < 0.7


def test_without_names_the_number_of_clusters_is_found(tmp_path, table):
    items, features = table
    nameless = read_table(items.path)
    found, settings = _group(nameless, features)
    assert len(np.unique(found.clusters["kmeans"])) == 3
    assert {m.name for m in measure_clustering(found, nameless, settings)} == {"intra_distance", "inter_distance", "silhouette"}


def test_models_are_compared_on_the_same_structures(table):
    items, features = table
    good, settings = _group(items, features)
    poor, _ = _group(items, np.random.default_rng(3).normal(size=features.shape))
    compared = {c.name: c.difference for c in compare_clusterings([good, poor], items, settings)}
    assert compared["neighbour_accuracy"].low > 0
    assert compared["silhouette"].low > 0


def test_label_maps_are_clustered_end_to_end_with_a_picture_of_each(cohort, tmp_path):
    table = expand_label_maps(read_table(cohort / "maps.csv"), read_label_names(cohort / "labels.csv"))
    settings = ClusteringSettings(map="pca", resamples=50, crop=CropSpec(128, 4))
    results = cluster_structures([parse_model("histogram")], table, tmp_path, settings)
    held = {(m.name, m.method): m.interval.value for m in results.summary.measurements}
    assert held["neighbour_accuracy", "features"] == 1
    assert held["ari", "kmeans"] == pytest.approx(1)
    assert results.summary.extra["tiles"]["names"] == sorted(table.names)
    assert {"pca_x", "pca_y", "kmeans", "hdbscan"} <= set(results.predictions.columns)
    assert (tmp_path / "crops.png").read_bytes().startswith(b"\x89PNG")
    examples, clusters = read_examples(tmp_path)[1], results.predictions.set_index("item")["kmeans"]
    assert [one.kind for one in examples] == [f"cluster {number}" for number in sorted(set(clusters))]
    assert all(one.kind == f"cluster {clusters[one.name]}" for one in examples)
    page = write_clustering_report(results).read_text(encoding="utf-8")
    linked = re.findall(r'href="report-viewer\.html#([^"]*)"', page)
    assert linked == [f"cluster-{clusters[one.name]}-{number}" for number, one in enumerate(examples, start=1)]


def test_the_central_member_of_each_of_the_largest_clusters_is_shown(table):
    points = np.array([[0.0], [1.0], [2.1], [9.0], [50.0], [51.0], [52.5]])
    items = table[0].items[: len(points)]
    chosen = choose_central(items, points, np.array([0, 0, 0, -1, 2, 2, 2]), most=2)
    assert [(one.kind, one.item) for one in chosen] == [("cluster 0", items[1]), ("cluster 2", items[5])]
    assert [one.kind for one in choose_central(items, points, np.array([0, 0, 0, 0, 2, 2, 2]), most=1)] == ["cluster 0"]


def test_a_map_there_is_not_names_the_nearest():
    with pytest.raises(TaskError, match=r"unknown map 'umpa'\. Nearest: umap"):
        ClusteringSettings(map="umpa")


def test_without_umap_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"dagman\[cluster\]"):
        map_neighbours(np.eye(5))
    with pytest.raises(TaskError, match="3 structures are too few for a map"):
        map_neighbours(np.zeros((3, 2)))


def test_umap_keeps_clear_kinds_apart_and_one_seed_gives_one_map():
    pytest.importorskip("umap")
    features, labels = _blobs()
    script = (
        "import json, sys, numpy as np; from dagman.tasks.cluster.structure_maps import map_neighbours;"
        "points = np.array(json.load(sys.stdin)); print(json.dumps([map_neighbours(points, neighbours=8, seed=3).tolist() for _ in "
        "range(2)]))"
    )
    # Uncompiled: compiling takes two minutes, mapping thirty points a second. Warnings are errors here too.
    command = [sys.executable, "-W", "error", "-c", script]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        command, input=json.dumps(features.tolist()), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    first, again = np.array(json.loads(done.stdout))
    assert np.array_equal(first, again)
    own = np.array(labels)
    centres = np.stack([first[own == label].mean(axis=0) for label in "abc"])
    nearest = np.linalg.norm(first[:, None] - centres, axis=2).argmin(axis=1)
    assert (np.array(list("abc"))[nearest] == own).all()


def test_umap_of_equal_points_is_refused_and_its_neighbours_are_those_used(monkeypatch):
    # Not umap itself, which compiles for ten seconds: equal points are refused before it, and others once it places none.
    lost = SimpleNamespace(fit_transform=lambda points: np.full((len(points), 2), np.nan))
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=lambda **settings: lost))
    for points, distinct in ((np.ones((8, 5)), 1), (np.eye(8)[[0, 1, 2, 0, 1, 2, 0, 1]], 3)):
        with pytest.raises(TaskError, match=f"cannot map 8 structures of which only {distinct} have different features"):
            map_neighbours(points)
    assert count_neighbours(6, 15) == 5
    assert count_neighbours(100, 15) == 15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: np.ones_like(values), "features of all 4 items are identical, so they cannot be distinguished"),
        (lambda values: values + np.where(np.arange(4) == 2, np.nan, 0)[:, None], "features of 1 item are not finite"),
    ],
)
def test_features_that_say_nothing_end_the_task(table, monkeypatch, change, said):
    items = table[0].items[:4]
    values = change(np.arange(20.0).reshape(4, 5)).astype(np.float32)
    monkeypatch.setattr(
        "dagman.tasks.inputs.model_inputs.extract_features",
        lambda *asked, **named: FeatureTable(items=items, values=values, columns=tuple("abcde"), hashes=tuple("wxyz")),
    )
    with pytest.raises(TaskError, match=said):
        gather_inputs([parse_model("histogram")], replace(table[0], items=items))


@pytest.mark.parametrize(
    ("labels", "patients", "trivial", "known"),
    [
        # 6 structures of one patient, one a kind: any clusters would agree, and no neighbour could be of the same kind.
        ("012345", "pppppp", _AGREEING | _SPREAD | {"neighbour_accuracy"}, set()),
        ("000000", "pqrstu", _AGREEING | {"silhouette", "inter_distance", "neighbour_accuracy"}, {"intra_distance"}),
        ("001122", "pppppp", {"neighbour_accuracy"}, _AGREEING | _SPREAD),
        ("012012", "pppqqq", set(), _AGREEING | _SPREAD | {"neighbour_accuracy"}),
    ],
)
def test_measures_that_names_make_trivial_are_not_numbers_and_give_the_reason(labels, patients, trivial, known, table):
    items, features = table
    settings = ClusteringSettings(map="pca", resamples=20)
    model = ModelInput(name="m", spec=parse_model("histogram"), encoder=None, features=features[:6].astype(np.float32))
    chosen = zip(items.items, labels, patients, strict=False)
    named = replace(items, items=tuple(replace(item, label=label, patient=who) for item, label, who in chosen))
    named = replace(named, classes=tuple(sorted(set(labels))))
    measured = measure_clustering(group_structures(model, named, settings), named, settings)
    assert {m.name for m in measured if m.method != "hdbscan" and not np.isfinite(m.interval.value)} == trivial
    assert {m.name for m in measured if np.isfinite(m.interval.value)} == known
    undefined = [m for m in measured if not np.isfinite(m.interval.value)]
    assert all(m.interval.how.startswith("n/a: ") for m in undefined)
    # HDBSCAN finds nothing among six points.
    assert all(m.interval.how == "n/a: no cluster was found" for m in undefined if m.method == "hdbscan" and not trivial)
    assert len(explain_intervals(measured)) >= len({m.interval.how for m in undefined})
