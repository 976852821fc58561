"""Proves that a map's labels each get a vector: the tokens within it, weighted by what lies in it, with its size and name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dagman.encoder.dense import labels as labels_module
from dagman.encoder.dense.labels import LabelRow, stream_labels
from dagman.encoder.embedding import list_columns, map_scan
from dagman.encoder.encoder import Encoder
from dagman.encoder.feature_file import read_features
from dagman.encoder.inputs.opening import RefusedItem
from dagman.encoder.pooling import Pooling, pool_features
from dagman.encoder.tiling import estimate_bytes, plan_pass
from dagman.errors import DagmanError
from dagman.scans.affine import Affine
from dagman.scans.reading import read_scan
from dagman.scans.scan import Scan
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation, prepare_mask
from dagman.store.writer import prepare_store
from dagman.tables.items import Item

NAMES = {1: "nodule", 2: "liver"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, body_hu: Callable[..., np.ndarray], write_image: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    labels = np.zeros((44, 40, 36), dtype=np.uint8)
    labels[12:16, 18:22, 16:20] = 1
    labels[20:35, 10:30, 5:25] = 2
    for number in (1, 2):
        write_image(folder / "scans" / f"s{number}_0000.nii.gz", body_hu(seed=number))
        write_image(folder / "maps" / f"s{number}.nii.gz", labels)
    write_image(folder / "elsewhere.nii.gz", labels, np.diag([2.0, 5.0, 5.0, 1.0]))
    write_image(folder / "empty.nii.gz", np.zeros_like(labels))
    (folder / "names.csv").write_text("id,name\n1,nodule\n2,liver\n")
    rows = ["scan,patient,seg,age", "scans/s2_0000.nii.gz,b,,70", "scans/s1_0000.nii.gz,a,maps/s1.nii.gz,61"]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


def _list_item(cohort: Path, **changes: object) -> Item:
    item = Item(index=0, name="s1", scan=cohort / "scans/s1_0000.nii.gz", patient="a", mask=cohort / "maps/s1.nii.gz")
    return dataclasses.replace(item, **changes)


def test_a_label_is_the_tokens_within_it(encoder: Encoder, cohort: Path):
    found = encoder.embed(cohort / "scans/s1_0000.nii.gz", label_map=cohort / "maps/s1.nii.gz", labels=NAMES)
    assert found["label_value"].tolist() == [1, 2]
    assert found["label_name"].tolist() == ["nodule", "liver"]
    assert found["voxels"].tolist() == [64, 6000]
    assert found["volume_mm3"].tolist() == [8000, 750_000]
    # The definition: the maps of the whole scan, and the label on the padded scan.
    prepared = encoder.prepare(cohort / "scans/s1_0000.nii.gz")
    tiling = plan_pass(prepared.shape, 32, encoder.network.encoder)
    dense = map_scan(encoder, prepared)
    placed = prepare_mask(read_scan(cohort / "maps/s1.nii.gz", labels=True), prepared)
    for row, value in enumerate((1, 2)):
        inside = torch.zeros(tiling.padded, dtype=torch.bool)
        inside[tiling.scan_box] = torch.from_numpy(placed == value)
        wanted = pool_features(dense.maps, inside, Pooling())
        np.testing.assert_allclose(found[list_columns(encoder, Pooling())].to_numpy()[row], wanted, rtol=2e-5, atol=2e-6)


def test_slabs_and_tiles_change_nothing_that_matters(
    encoder: Encoder, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    item, pooling = _list_item(cohort), Pooling(stages=(1, 2))
    (_, whole) = stream_labels(encoder, [item], pooling=pooling)
    monkeypatch.setattr(labels_module, "SLAB", 7)
    (_, slabs) = stream_labels(encoder, [item], pooling=pooling)
    np.testing.assert_allclose(slabs.values, whole.values, rtol=1e-5, atol=1e-6)
    memory = 64**3 * estimate_bytes(encoder.network.encoder)
    (_, tiled) = stream_labels(encoder, [item], pooling=pooling, memory=memory // 2, folder=tmp_path)
    assert isinstance(tiled, LabelRow)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_used_is_refused_and_the_rest_goes_on(encoder: Encoder, cohort: Path):
    items = [
        _list_item(cohort, mask=None),
        _list_item(cohort, index=1, name="elsewhere", mask=cohort / "elsewhere.nii.gz"),
        _list_item(cohort, index=2, name="empty", mask=cohort / "empty.nii.gz"),
        _list_item(cohort, index=3, name="one", label_value=2),
        _list_item(cohort, index=4, name="three", label_value=3),
        _list_item(cohort, index=5, name="gone", scan=cohort / "scans/s9.nii.gz"),
    ]
    rows = list(stream_labels(encoder, items, pooling=Pooling(stages=(3,), pools=("mean",)), names=NAMES))
    assert [row.item.name for row in rows if isinstance(row, LabelRow)] == ["one:liver"]
    reasons = {row.item.name: row.reason for row in rows if isinstance(row, RefusedItem)}
    assert reasons["s1"] == "has no label map."
    assert "is on another grid" in reasons["elsewhere"]
    assert "is empty" in reasons["empty"]
    assert "has no voxels of label 3 (its labels: 1, 2)" in reasons["three"]
    assert "does not exist" in reasons["gone"]


def test_labels_beyond_the_scan_and_absurd_ones_are_refused(encoder: Encoder, body: Scan):
    labels = np.zeros(body.shape, dtype=np.int64)
    labels[20:24, 18:22, 16:20] = 5
    labels[0, 0, 0] = 100_000
    # Air in a corner: cut off before the encoder reads the scan.
    labels[0:2, 0:2, 0:2] = 7
    labels[0, 0, 0] = 100_000
    found = encoder.embed(body, label_map=labels, pooling=Pooling(stages=(4,), pools=("mean",)))
    assert found["label_value"].tolist() == [5]
    assert found["label_name"].tolist() == [None]
    assert dict(found.attrs["refused"])["body.nii.gz:100000"] == "100000 is not a label: labels are whole numbers from 1 to 65535"


def test_a_data_frame_keeps_its_columns(encoder: Encoder, cohort: Path):
    given = pd.DataFrame(
        {"scan": [cohort / f"scans/s{n}_0000.nii.gz" for n in (1, 2)], "age": [61, 70], "seg": [None, cohort / "maps/s2.nii.gz"]},
        index=["x", "y"],
    )
    found = encoder.embed(given, label_map="seg", labels=cohort / "names.csv", pooling=Pooling(stages=(3,), pools=("mean",)))
    assert found.index.tolist() == ["y", "y"]
    assert found["age"].tolist() == [70, 70]
    assert found["label_name"].tolist() == ["nodule", "liver"]
    assert [reason for _, reason in found.attrs["refused"]] == ["has no label map."]
    with pytest.raises(DagmanError, match="no column 'sge'"):
        encoder.embed(given, label_map="sge")
    with pytest.raises(DagmanError, match="applies to whole scans"):
        encoder.embed(given, label_map="seg", crop_mm=50)  # type: ignore[call-overload]


def test_a_map_of_another_shape_or_with_fractions_is_refused(encoder: Encoder, body: Scan):
    with pytest.raises(DagmanError, match="the label map has shape 3 x 3 x 3, the scan 44 x 40 x 36"):
        encoder.embed(body, label_map=np.ones((3, 3, 3), dtype=np.int16))
    with pytest.raises(DagmanError, match="not whole numbers"):
        encoder.embed(body, label_map=np.full(body.shape, 0.5))
    shifted = Scan(
        voxels=np.ones(body.shape, np.int16), affine=Affine(np.diag([4.0, 5, 5, 1])), modality="other", patient="", source="map"
    )
    with pytest.raises(DagmanError, match="is on another grid"):
        encoder.embed(body, label_map=shifted)


def test_a_stored_scan_gives_what_its_file_does(encoder: Encoder, cohort: Path, tmp_path: Path):
    prepare_store(cohort / "scans", tmp_path / "store", Preparation(spacing=4.0), workers=1)
    store, pooling = Store(tmp_path / "store"), Pooling(stages=(2,))
    of_file = encoder.embed(cohort / "scans/s1_0000.nii.gz", label_map=cohort / "maps/s1.nii.gz", pooling=pooling)
    item = _list_item(
        cohort,
        scan=next(
            row.id for row in store.rows if row.content_hash == encoder.prepare(cohort / "scans/s1_0000.nii.gz").content_hash
        ),
    )
    (one, two) = stream_labels(encoder, [item], store=store, pooling=pooling)
    np.testing.assert_allclose(np.stack([one.values, two.values]), of_file[list_columns(encoder, pooling)].to_numpy(), rtol=1e-6)


def test_the_command_takes_a_folder_of_maps_or_a_column(call_dagman, encoder_folder: Path, cohort: Path, tmp_path: Path):
    asked = ("--labels", cohort / "names.csv", "--stages", "3", "--pools", "mean")
    out = tmp_path / "organs.parquet"
    code, _, errors = call_dagman("embed", encoder_folder, cohort / "scans", "--label-map", cohort / "maps", "--out", out, *asked)
    assert code == 0, errors
    file = read_features(out)
    assert len(file.columns) == 64
    assert file.items["label_name"] == ["nodule", "liver"] * 2
    assert file.items["label_value"] == [1, 2, 1, 2]
    assert file.items["row"] == [0, 0, 1, 1]
    assert file.provenance["settings"]["label_names"] == {"1": "nodule", "2": "liver"}
    code, _, errors = call_dagman(
        "embed", encoder_folder, cohort / "table.csv", "--label-map", "seg", "--out", tmp_path / "o.csv", *asked
    )
    assert code == 0, errors
    table = pd.read_csv(tmp_path / "o.csv")
    joined = table.merge(pd.read_csv(cohort / "table.csv").reset_index(names="row"), on=["row", "patient"])
    assert joined[["patient", "label_name", "age"]].to_numpy().tolist() == [["a", "nodule", 61], ["a", "liver", 61]]
    assert "s2_0000,has no label map" in (tmp_path / "o.csv.rejected.csv").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--label-map", "scans"), "holds no map named like any of 2 scans"),
        (("--label-map", "maps/s1.nii.gz"), "is one label map, but 2 scans were given"),
        (("--label-map", "nowhere"), "is neither a label map nor a folder"),
        (("--label-map", "maps", "--dense"), "--dense and --label-map cannot be combined"),
        (("--label-map", "maps", "--crop-mm", "5"), "--crop-mm has no effect with --label-map"),
        (("--labels", "names.csv"), "--labels has no effect here. Give --label-map, or leave --labels out"),
    ],
)
def test_mistakes_get_one_line(
    call_dagman, encoder_folder: Path, cohort: Path, tmp_path: Path, options: tuple, says: str, monkeypatch
):
    monkeypatch.chdir(cohort)
    (cohort / "others").mkdir(exist_ok=True)
    options = tuple("others" if one == "scans" else one for one in options)
    code, _, errors = call_dagman("embed", encoder_folder, "scans", "--out", tmp_path / "o.csv", *options)
    assert code == 2
    assert says in errors
    assert errors.count("\n") == 1
