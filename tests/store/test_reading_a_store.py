"""Proves that a store gives back what was put in, box by box, and that damage and other versions are named in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagman.errors import StoreError
from dagman.scans.reading import read_scan
from dagman.store.format import locate_scan, open_voxels, pack_voxels
from dagman.store.manifest import ManifestRow, Store
from dagman.store.preparation import Preparation, prepare_scan
from dagman.store.upkeep.verification import Finding, verify_store
from dagman.store.writer import prepare_store


@pytest.fixture(scope="module")
def made(cohort, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "store"
    prepare_store(cohort, out, workers=1)
    return out


@pytest.fixture
def store(made, tmp_path) -> Store:
    return Store(shutil.copytree(made, tmp_path / "store"))


def test_a_scan_is_read_as_it_was_prepared(store, cohort):
    wanted = prepare_scan(read_scan(cohort / "p1" / "ct.nii.gz"), Preparation())
    found = store.read(wanted.content_hash[:16])
    assert np.array_equal(found.voxels, wanted.voxels)
    assert found.affine == wanted.affine
    assert (found.crop_box, found.scale, found.modality) == (wanted.crop_box, None, "CT")
    assert (found.content_hash, found.source) == (wanted.content_hash, found.content_hash[:16])


def test_rows_say_what_a_scan_is_and_not_who(store, cohort):
    assert [row.id for row in store.rows] == sorted(row.id for row in store.rows)
    assert len(store) == len(store.rows) == 5
    row = store.rows[0]
    assert store.row(row.id) is row
    assert row.shape == store.read(row.id).shape
    assert row.spacing == pytest.approx((2, 2, 2))
    assert len(row.affine) == 16
    assert row.hu_evidence["air_share"] > 0.1
    assert row.size == locate_scan(store.path, row.id).stat().st_size
    text = json.dumps(pq.read_table(store.path / "manifest.parquet").to_pylist()) + (store.path / "journal.jsonl").read_text()
    assert str(cohort) not in text
    assert "ct.nii" not in text


def test_store_json_says_how_it_was_made(store):
    assert store.info["format"] == 1
    assert (store.info["spacing"], store.info["dtype"], store.info["orientation"]) == (2.0, "int16", "RAS+")
    assert store.info["digest"] == Preparation().digest
    assert store.preparation == Preparation()
    assert json.loads((store.path / "command.json").read_text())["outcome"]["kept"] == 5


@pytest.mark.parametrize("seed", range(5))
def test_any_box_is_the_same_part_of_the_scan(store, seed):
    random = np.random.default_rng(seed)
    row = store.rows[seed % 5]
    start = [int(random.integers(0, size)) for size in row.shape]
    size = [int(random.integers(1, extent - first + 1)) for first, extent in zip(start, row.shape, strict=True)]
    box = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
    found = store.crop(row.id, start, size)
    assert found.dtype == np.int16
    assert np.array_equal(found, store.read(row.id).voxels[box])


@pytest.mark.parametrize(("start", "size"), [((-1, 0, 0), (2, 2, 2)), ((0, 0, 0), (2, 2, 999)), ((0, 0, 0), (0, 2, 2))])
def test_a_box_that_leaves_the_scan_is_a_fault_of_the_caller(store, start, size):
    with pytest.raises(ValueError, match="does not lie in scan"):
        store.crop(store.rows[0].id, start, size)


def test_a_store_travels_to_another_process(store):
    row = store.rows[0]
    before = store.read(row.id)
    other = pickle.loads(pickle.dumps(store))
    assert np.array_equal(other.read(row.id).voxels, before.voxels)
    assert repr(other) == "Store(5 scans, 2 mm)"


def test_more_files_than_handles_are_read(store, monkeypatch):
    monkeypatch.setattr("dagman.store.manifest.OPEN_FILES", 2)
    shapes = [store.read(row.id).shape for row in (*store.rows, *store.rows)]
    assert shapes == [row.shape for row in (*store.rows, *store.rows)]
    assert len(store._handles) == 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 31, 7), (130, 5, 64)])
def test_packed_voxels_are_the_same_bytes_every_time(tmp_path, shape):
    voxels = np.random.default_rng(0).integers(-1024, 3000, shape).astype(np.int16)
    frame = pack_voxels(voxels)
    assert frame == pack_voxels(np.asfortranarray(voxels))
    (tmp_path / "a.b2nd").write_bytes(frame)
    assert np.array_equal(open_voxels(tmp_path / "a.b2nd")[:], voxels)


def test_an_unknown_id_names_the_nearest(store):
    wrong = store.rows[0].id[:-1] + "?"
    with pytest.raises(StoreError, match=rf"holds no scan '.*'\. Nearest: {store.rows[0].id}\.$"):
        store.row(wrong)


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"is not a store: it has no store\.json\. Make one: dagman prepare SCANS --out STORE\.$"):
        Store(tmp_path)
    with pytest.raises(StoreError, match=r"absent: does not exist\. Make one: dagman prepare SCANS --out STORE\.$"):
        Store(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "message"), [('{"format": 99}', "is a store of format 99"), ("[]", "format None"), ("{", "cannot be read")]
)
def test_a_store_of_another_format_is_refused(store, content, message, cohort):
    (store.path / "store.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        Store(store.path)
    with pytest.raises(StoreError, match=message):
        prepare_store(cohort, store.path, workers=1)


def test_a_whole_store_has_no_findings(store):
    assert verify_store(store) == []


def test_every_kind_of_damage_is_found(store):
    first, second, third, fourth, _ = (locate_scan(store.path, row.id) for row in store.rows)
    first.write_bytes(first.read_bytes()[:-1000])
    flipped = bytearray(second.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    second.write_bytes(flipped)
    third.rename(third.with_name("0123456789abcdef.b2nd"))
    names = {path: str(path.relative_to(store.path)) for path in (first, second, third)}
    found = verify_store(Store(store.path))
    assert {finding.file for finding in found} == {*names.values(), names[third].replace(third.name, "0123456789abcdef.b2nd")}
    problems = {finding.file: finding.problem for finding in found}
    size = store.rows[0].size
    assert problems[names[first]] == f"holds {size - 1000} bytes instead of {size}"
    assert problems[names[second]] == "its checksum differs from the manifest's"
    assert problems[names[third]] == "is missing"
    assert Finding(names[third].replace(third.name, "0123456789abcdef.b2nd"), "has no row in the manifest") in found
    fourth.write_bytes(b"no frame at all")
    with pytest.raises(StoreError, match=r"is damaged\. Delete it and run dagman prepare again on the same scans\.$"):
        Store(store.path).read(store.rows[3].id)
    with pytest.raises(StoreError, match="is missing"):
        Store(store.path).read(store.rows[2].id)


def test_a_file_that_is_shortened_after_it_was_opened_is_named_and_does_not_kill_the_process(store):
    row = store.rows[0]
    path = locate_scan(store.path, row.id)
    before = store.read(row.id).voxels
    with path.open("r+b") as file:
        file.truncate(row.size // 4)
    with pytest.raises(StoreError, match=r"is damaged"):
        store.read(row.id)
    with path.open("r+b") as file:
        file.truncate(0)
    with pytest.raises(StoreError, match=r"is damaged"):
        store.read(row.id)
    assert before.shape == row.shape


def test_a_damaged_manifest_is_named_and_made_again_from_the_journal(store, cohort):
    rows = store.rows
    manifest = store.path / "manifest.parquet"
    manifest.write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"manifest\.parquet: cannot be read \(ArrowInvalid: ") as caught:
        _ = Store(store.path).rows
    assert "Parquet file size is 7 bytes" in caught.value.what
    assert caught.value.do == "Delete it and run dagman prepare again; the journal has its rows"
    manifest.unlink()
    assert Store(store.path).rows == rows
    prepare_store(cohort, store.path, workers=1)
    assert Store(store.path).rows == rows
    assert manifest.exists()


def test_an_error_of_another_library_is_named_by_its_first_line(store, monkeypatch):
    def refuse(path):
        raise pa.ArrowInvalid("Expected all lists to be of size=2 but index 2 had size=0\nIn parquet, line 3")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(StoreError) as caught:
        _ = store.rows
    assert str(caught.value) == (
        f"{store.path / 'manifest.parquet'}: cannot be read "
        "(ArrowInvalid: Expected all lists to be of size=2 but index 2 had size=0). "
        "Delete it and run dagman prepare again; the journal has its rows."
    )


def test_a_manifest_of_fixed_size_scales_as_once_written_is_read_and_added_to(store, nifti_of, trunk, tmp_path):
    mr = trunk(7).astype(np.float32) + 2000
    prepare_store(nifti_of(tmp_path / "mr.nii.gz", mr), store.path, workers=1, modality="mr")
    rows = Store(store.path).rows
    assert sorted(row.scale is None for row in rows) == [False, True, True, True, True, True]
    path = store.path / "manifest.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("scale")
    fixed = pa.array(table["scale"].to_pylist(), pa.list_(pa.float64(), 2))
    pq.write_table(table.set_column(place, pa.field("scale", fixed.type), fixed), path)
    (store.path / "journal.jsonl").unlink()

    assert Store(store.path).rows == rows
    prepare_store(nifti_of(tmp_path / "new.nii.gz", trunk(8)), store.path, workers=1)
    again = Store(store.path)
    assert len(again) == 7
    assert all(row in again.rows for row in rows)
    assert pq.read_schema(path).field("scale").type == pa.list_(pa.float64())
    assert verify_store(again) == []


def test_no_column_that_may_be_empty_has_a_fixed_size(store):
    optional = {one.name for one in fields(ManifestRow) if "None" in str(one.type)}
    assert {"scale", "hu_evidence"} <= optional
    schema = pq.read_schema(store.path / "manifest.parquet")
    assert [name for name in optional if pa.types.is_fixed_size_list(schema.field(name).type)] == []


def test_the_manifest_alone_is_enough(store):
    rows = store.rows
    (store.path / "journal.jsonl").unlink()
    assert Store(store.path).rows == rows


def test_the_journal_is_read_from_where_the_manifest_ends_and_anew_when_it_was_rewritten(store, cohort):
    rows, journal = store.rows, store.path / "journal.jsonl"
    # What the manifest holds is not read a second time: of this line nothing is left to say.
    text = journal.read_text()
    first = text.splitlines(keepends=True)[0]
    journal.write_text(text.replace(first, " " * (len(first) - 1) + "\n"))
    assert Store(store.path).rows == rows
    gone = rows[0].id
    with open(journal, "a") as file:
        file.write(json.dumps({"id": gone, "dropped": True}) + "\n")
    assert Store(store.path).rows == rows[1:]
    # Rewritten and longer than before, it says again all that it says.
    journal.write_text(text + json.dumps({"id": rows[1].id, "dropped": True}) + "\n" + " " * 9000 + "\n")
    assert rows[1].id not in {row.id for row in Store(store.path).rows}
    journal.write_text(json.dumps({"id": rows[2].id, "dropped": True}) + "\n")
    assert rows[2].id not in {row.id for row in Store(store.path).rows}
