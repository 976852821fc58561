"""Proves that a table's items get their features: each scan read once, nothing lost in silence, the same through a store."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagman.encoder import items as items_module
from dagman.encoder.embedding import list_columns
from dagman.encoder.encoder import Encoder
from dagman.encoder.feature_file import read_features, write_features, write_refused
from dagman.encoder.items import (
    FeatureRow,
    OpenItem,
    RefusedItem,
    embed_items,
    list_scans,
    list_seen,
    list_stored,
    open_items,
    stream_features,
)
from dagman.encoder.pooling import Pooling
from dagman.encoder.reader import ScanReader
from dagman.errors import SettingsError, TableError
from dagman.scans.reading import read_scan
from dagman.scans.scan import Scan, hash_scan
from dagman.store.crops import CropSpec, choose_crop, cut_structure, cut_surroundings
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.tables.table import Table, read_table


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, body_hu: Callable[..., np.ndarray], write_image: Callable[..., Path]) -> Path:
    """Two scans, one with a label map of two structures; the table also has a point, a whole scan, and two that cannot be used."""
    folder = tmp_path_factory.mktemp("cohort")
    for number in (1, 2):
        write_image(folder / f"scan-{number}.nii.gz", body_hu(seed=number))
    labels = np.zeros((44, 40, 36), dtype=np.uint8)
    labels[12:16, 18:22, 16:20] = 1
    labels[27:30, 18:24, 10:20] = 2
    write_image(folder / "labels.nii.gz", labels)
    write_image(folder / "elsewhere.nii.gz", labels, np.diag([2.0, 5.0, 5.0, 1.0]))
    rows = [
        "scan,patient,mask,label_value,center_x_mm,center_y_mm,center_z_mm",
        "scan-1.nii.gz,a,labels.nii.gz,1,,,",
        "scan-2.nii.gz,b,,,110,100,90",
        "scan-1.nii.gz,a,labels.nii.gz,2,,,",
        "scan-2.nii.gz,b,,,,,",
        "scan-1.nii.gz,a,labels.nii.gz,3,,,",
        "scan-2.nii.gz,b,elsewhere.nii.gz,1,,,",
    ]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def table(cohort: Path) -> Table:
    return read_table(cohort / "table.csv")


@given(st.floats(0.5, 400), st.floats(0.5, 6))
def test_a_chosen_crop_shows_the_structure_and_what_is_around_it(extent: float, coarsest: float):
    side, spacing = choose_crop(extent, coarsest=coarsest)
    assert side % 32 == 0
    assert 64 <= side <= 128
    assert spacing >= 0.7
    assert side * spacing >= 1.25 * extent * (1 - 1e-9)
    assert side == 128 or spacing <= max(coarsest, 0.7)


@pytest.mark.parametrize(
    ("extent", "asked", "expected"),
    [
        (15.0, {}, (64, 0.7)),
        (None, {}, (64, 1.0)),
        ([10.0, 15.0, 50.0], {}, (128, 0.7)),
        (100.0, {}, (96, 2.0)),
        (15.0, {"mm": 44.8, "spacing": 0.7}, (64, 0.7)),
        (15.0, {"mm": 60.0}, (96, 0.625)),
        (15.0, {"spacing": 0.5}, (64, 0.5)),
    ],
)
def test_crops_of_known_sizes(extent, asked: dict, expected: tuple[int, float]):
    assert choose_crop(extent, CropSpec(**asked)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"mm": -1.0}, "crop-mm is -1 mm. Give more than 0."),
        ({"spacing": float("nan")}, "crop-spacing is nan mm. Give more than 0."),
        (
            {"mm": 500.0, "spacing": 0.5},
            "a crop of 500 mm at 0.5 mm has 1024 voxels per side; the maximum is 256. "
            "Give a smaller --crop-mm or a coarser --crop-spacing.",
        ),
    ],
)
def test_a_crop_that_cannot_be_is_refused(asked: dict, text: str):
    with pytest.raises(SettingsError) as error:
        choose_crop(10.0, CropSpec(**asked))
    assert str(error.value) == text


def test_a_crop_holds_its_structure_where_the_scan_shows_it(body: Scan):
    inside = np.zeros(body.shape, dtype=bool)
    inside[20:24, 20:26, 10:18] = True
    marked = dataclasses.replace(body, voxels=np.where(inside, 1000, body.voxels).astype(np.int16))
    crop = cut_structure(marked, inside, choose_crop(40.0, CropSpec(spacing=2.5)))
    # Each voxel of 5 mm is two of 2.5 mm along each axis.
    assert crop.inside.sum() == inside.sum() * 8
    assert crop.voxels[crop.inside].mean() > 850
    assert crop.voxels[~crop.inside].max() < 1000


def test_a_structure_thinner_than_the_spacing_is_still_pooled(body: Scan):
    inside = np.zeros(body.shape, dtype=bool)
    inside[20, 20, 20] = True
    crop = cut_structure(body, inside, choose_crop(None, CropSpec(640.0, 20.0)))
    assert 1 <= crop.inside.sum() <= 8


def test_a_point_is_pooled_in_a_ball_around_it(body: Scan):
    crop = cut_surroundings(body, (110, 100, 90), choose_crop(None))
    places = np.argwhere(crop.inside) - 31.5
    assert np.linalg.norm(places, axis=1).max() <= 16
    np.testing.assert_allclose(places.mean(axis=0), 0, atol=1e-12)


def test_items_come_in_the_table_s_order_and_none_is_lost(encoder: Encoder, table: Table):
    features = embed_items(encoder, table.items)
    assert [item.index for item in features.items] == [0, 1, 2, 3]
    assert features.values.shape == (4, len(list_columns(encoder, Pooling())))
    assert len(np.unique(features.values[:, 0])) == 4
    reasons = {refused.item.index: refused.reason for refused in features.refused}
    assert reasons.keys() == {4, 5}
    assert "labels.nii.gz has no voxels of label 3 (its labels: 1, 2)" in reasons[4]
    assert "elsewhere.nii.gz is on another grid" in reasons[5]
    assert features.hashes[0] == features.hashes[2] == hash_scan(read_scan(table.items[0].scan))


def test_the_order_of_rows_changes_nothing(encoder: Encoder, table: Table):
    forwards = {row.item.index: row.values for row in stream_features(encoder, table.items) if hasattr(row, "values")}
    backwards = {row.item.index: row.values for row in stream_features(encoder, table.items[::-1]) if hasattr(row, "values")}
    assert forwards.keys() == backwards.keys()
    assert all(np.array_equal(forwards[index], backwards[index]) for index in forwards)


def test_an_item_s_features_are_those_of_the_encoder_alone(encoder: Encoder, cohort: Path, table: Table):
    features = embed_items(encoder, table.items[:4], crop=CropSpec(spacing=2.0))
    labels = read_scan(cohort / "labels.nii.gz").voxels
    scans = [cohort / f"scan-{number}.nii.gz" for number in (1, 2)]
    alone = [
        encoder.embed(scans[0], mask=labels == 1, crop_spacing=2.0),
        encoder.embed(scans[1], points=[(110, 100, 90)], crop_spacing=2.0),
        encoder.embed(scans[0], mask=labels == 2, crop_spacing=2.0),
        encoder.embed(scans[1]),
    ]
    for row, single in zip(features.values, alone, strict=True):
        np.testing.assert_array_equal(row, single.values[0])


def test_items_can_be_had_opened_instead(encoder: Encoder, table: Table):
    found = list(open_items(encoder, table.items))
    opened = {one.item.index: one for one in found if isinstance(one, OpenItem)}
    assert opened.keys() == {0, 1, 2, 3}
    assert {one.item.index for one in found if isinstance(one, RefusedItem)} == {4, 5}
    assert opened[2].inside is not None
    assert opened[2].inside.sum() == 3 * 6 * 10
    assert opened[1].inside is None
    assert opened[1].scan.shape == (44, 40, 36)


def test_an_absent_scan_costs_its_own_rows_alone(encoder: Encoder, table: Table):
    lost = dataclasses.replace(table.items[1], scan=Path("gone.nii.gz"))
    features = embed_items(encoder, [table.items[0], lost])
    assert [item.index for item in features.items] == [0]
    assert [refused.item.index for refused in features.refused] == [1]


def test_a_scan_is_decoded_once_for_its_rows(encoder: Encoder, table: Table, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []

    def count(self: ScanReader, scan: object) -> Scan:
        read.append(str(scan))
        return original(self, scan)  # type: ignore[arg-type]

    original = ScanReader.read
    monkeypatch.setattr(ScanReader, "read", count)
    embed_items(encoder, table.items)
    assert len(read) == len(set(read)) == 2


def test_what_is_cached_is_found_again_and_not_computed(
    encoder: Encoder, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = embed_items(encoder, table.items, cache=tmp_path)
    assert len(list(tmp_path.rglob("*.npy"))) == 4

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the encoder was asked again")

    monkeypatch.setattr(Encoder, "features", refuse)
    again = embed_items(encoder, table.items[::-1], cache=tmp_path)
    np.testing.assert_array_equal(again.values, first.values)
    with pytest.raises(AssertionError, match="asked again"):
        embed_items(encoder, table.items, cache=tmp_path, pooling=Pooling(stages=(1,)))


def test_a_damaged_cache_is_computed_anew(encoder: Encoder, table: Table, tmp_path: Path):
    first = embed_items(encoder, table.items[:2], cache=tmp_path)
    for path in tmp_path.rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:50])
    np.testing.assert_array_equal(embed_items(encoder, table.items[:2], cache=tmp_path).values, first.values)


def test_a_file_and_its_stored_copy_have_the_same_features(encoder: Encoder, cohort: Path, tmp_path: Path):
    scans = [cohort / "scan-1.nii.gz", cohort / "scan-2.nii.gz"]
    prepare_store(scans, tmp_path / "store", Preparation(spacing=4.0), workers=1)
    store = Store(tmp_path / "store")
    items, refused = list_scans(scans)
    assert refused == []
    of_files = embed_items(encoder, items)
    of_store = embed_items(encoder, list_stored(store), store=store)
    by_content = dict(zip(of_store.hashes, of_store.values, strict=True))
    assert set(of_files.hashes) == set(by_content)
    for content, values in zip(of_files.hashes, of_files.values, strict=True):
        np.testing.assert_array_equal(by_content[content], values)


def test_a_table_of_stored_scans_takes_masks_of_the_files(encoder: Encoder, cohort: Path, tmp_path: Path):
    prepare_store([cohort / "scan-1.nii.gz"], tmp_path / "store", Preparation(spacing=4.0), workers=1)
    store = Store(tmp_path / "store")
    (scan_id,) = (row.id for row in store.rows)
    rows = [
        "scan,patient,mask,label_value",
        f"{scan_id},a,{cohort / 'labels.nii.gz'},1",
        f"{scan_id},a,{cohort / 'labels.nii.gz'},3",
    ]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    table = read_table(tmp_path / "table.csv", known_ids=[scan_id])
    features = embed_items(encoder, table.items, store=store, crop=CropSpec(spacing=4.0))
    assert len(features) == 1
    assert "has no voxels of label 3" in features.refused[0].reason
    # The stored scan was resampled once already, so crops of it are close to those of the file, not equal.
    labels = read_scan(cohort / "labels.nii.gz").voxels
    direct = encoder.embed(cohort / "scan-1.nii.gz", mask=labels == 1, crop_spacing=4.0)
    assert np.corrcoef(features.values[0], direct.values[0])[0, 1] > 0.95
    missing = embed_items(encoder, table.items)
    assert missing.refused[0].reason == f"{scan_id!r} is the id of a stored scan, but no store was given. Pass --store STORE."


def test_points_of_the_other_convention_are_recognised(
    encoder: Encoder, body_hu: Callable[..., np.ndarray], write_image: Callable[..., Path], tmp_path: Path
):
    write_image(tmp_path / "scan.nii.gz", body_hu())
    (tmp_path / "table.csv").write_text("scan,patient,center_x_mm,center_y_mm,center_z_mm\nscan.nii.gz,a,-110,-100,90\n")
    with pytest.raises(TableError, match=r"they appear to be LPS\. Pass --coordinates lps"):
        embed_items(encoder, read_table(tmp_path / "table.csv").items)
    flipped = read_table(tmp_path / "table.csv", coordinates="lps")
    assert len(embed_items(encoder, flipped.items)) == 1


def test_scans_that_pretraining_saw_are_named(encoder: Encoder):
    taught = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, scans_seen=("h1", "h3")))
    assert list_seen(taught, ["a", "b", "c", "c"], ["h1", "h2", "h3", "h3"]) == ["a", "c"]
    assert list_seen(encoder, ["a"], ["h1"]) == []


def test_features_are_written_with_how_they_came_to_be(
    encoder: Encoder, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dagman.encoder.feature_file.ROWS_AT_ONCE", 3)
    expected = embed_items(encoder, table.items)
    seen = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, scans_seen=(expected.hashes[0],)))
    rows = stream_features(encoder, table.items)
    refused: list[RefusedItem] = []
    count = write_features(tmp_path / "f.parquet", rows, seen, expected.columns, {"stages": [1, 2, 3, 4]}, refused)
    assert (count, len(refused)) == (4, 2)
    stored = read_features(tmp_path / "f.parquet")
    order = [expected.names.index(name) for name in stored.items["id"]]
    np.testing.assert_array_equal(stored.values, expected.values[order])
    assert stored.columns == expected.columns
    assert stored.items["label_value"] == [expected.items[place].label_value for place in order]
    assert stored.items["seen_in_pretraining"] == [expected.hashes[place] == expected.hashes[0] for place in order]
    assert stored.provenance["encoder"]["digest"] == seen.digest
    assert stored.provenance["settings"] == {"stages": [1, 2, 3, 4]}
    again = [FeatureRow(item=expected.items[i], values=expected.values[i], content_hash="h") for i in range(4)]
    assert write_features(tmp_path / "f.csv", again, seen, expected.columns, {}, []) == 4
    read = pd.read_csv(tmp_path / "f.csv", float_precision="round_trip")
    np.testing.assert_allclose(read[list(expected.columns)].to_numpy(), expected.values, rtol=1e-6)
    assert read["id"].tolist() == expected.names


def test_a_file_without_features_is_refused(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for name, text in (("a.parquet", "is not a feature file of dagman"), ("b.parquet", "does not exist. Run dagman embed.")):
        with pytest.raises(TableError, match=text):
            read_features(tmp_path / name)


def test_reasons_with_commas_stay_one_field(tmp_path: Path):
    write_refused(tmp_path / "r.csv", [("a,b", 'says "no", twice')])
    with open(tmp_path / "r.csv", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["source", "reason"], ["a,b", 'says "no", twice']]


def test_one_spacing_serves_a_table_and_is_measured_on_few_masks(encoder: Encoder, table: Table, monkeypatch: pytest.MonkeyPatch):
    # The structures that can be measured: 20 mm, 50 mm, and (the mask of another grid) 20 mm.
    assert items_module.choose_item_crop(table.items, encoder.reader).spacing == pytest.approx(0.7)
    monkeypatch.setattr(items_module, "MEASURED", 0)
    assert items_module.choose_item_crop(table.items, encoder.reader).spacing is None
    assert items_module.choose_item_crop(table.items, encoder.reader, CropSpec(mm=50)).spacing is None
    assert items_module.choose_item_crop(table.items, encoder.reader, CropSpec(spacing=0.9)).spacing == 0.9


def test_real_nodules_are_embedded(encoder: Encoder, shared_data: Path):
    table = read_table(shared_data / "lidc-nodules" / "table.csv", label="label")
    features = embed_items(encoder, table.items[:3])
    assert features.refused == ()
    assert np.isfinite(features.values).all()
