"""Proves what becomes of a scan whose files change, vanish or move, and of a patient who withdraws."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dagman.errors import StoreError
from dagman.records.key import Key, find_key, make_key, use_key
from dagman.scans import discovery
from dagman.scans.dicom import HEADERS
from dagman.scans.pseudonyms import name_patient
from dagman.scans.reading import read_scan
from dagman.scans.scan import hash_scan
from dagman.store.format import locate_scan, name_scan
from dagman.store.manifest import Store
from dagman.store.upkeep.removal import remove_scans
from dagman.store.upkeep.verification import verify_store
from dagman.store.writer import prepare_store


@pytest.fixture
def scans(nifti_of, trunk, tmp_path) -> Path:
    """Three scans of three patients, and a label map, which is refused."""
    for number in range(3):
        nifti_of(tmp_path / "scans" / f"case{number}.nii.gz", trunk(number))
    nifti_of(tmp_path / "scans" / "labels.nii.gz", np.arange(1000, dtype=np.int16).reshape(10, 10, 10) % 7)
    return tmp_path / "scans"


def prepare(scans: object, store: Path):
    return prepare_store(scans, store, workers=1)  # type: ignore[arg-type]


def name_of(path: Path) -> str:
    return name_scan(hash_scan(read_scan(path)))


def list_ids(store: Path) -> set[str]:
    """Ids by the manifest, which must agree with the files."""
    opened = Store(store)
    assert verify_store(opened) == []
    return {row.id for row in opened.rows}


def count_reads(monkeypatch) -> list[str]:
    """The sources that are decoded from now on."""
    import dagman.store.series as series

    read, found = series.read_measured, []
    monkeypatch.setattr(series, "read_measured", lambda one: found.append(one.source) or read(one))
    return found


def every_byte(store: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file())


def test_a_changed_source_replaces_its_scan_and_is_named(scans, nifti_of, trunk, tmp_path):
    prepare(scans, tmp_path / "store")
    before = list_ids(tmp_path / "store")
    changed = nifti_of(scans / "case1.nii.gz", trunk(7))
    summary = prepare(scans, tmp_path / "store")
    assert summary.replaced == (str(changed),)
    assert (summary.kept, summary.already, summary.vanished) == (3, 2, ())
    assert f"1 scan was replaced, as the files have changed since: {changed}" in summary.notes
    after = list_ids(tmp_path / "store")
    assert len(after) == 3
    assert after - before == {name_of(changed)}
    # Whoever reads the manifest alone, or the journal alone, reads the same.
    (tmp_path / "store" / "journal.jsonl").rename(tmp_path / "journal")
    assert list_ids(tmp_path / "store") == after
    (tmp_path / "journal").rename(tmp_path / "store" / "journal.jsonl")
    (tmp_path / "store" / "manifest.parquet").unlink()
    assert list_ids(tmp_path / "store") == after


def test_a_change_that_keeps_size_and_time_is_noticed(scans, nifti_of, trunk, tmp_path):
    # Uncompressed, so that sizes are equal.
    source = nifti_of(scans / "plain.nii", trunk(4))
    prepare(scans, tmp_path / "store")
    old, status = name_of(source), source.stat()
    nifti_of(tmp_path / "other.nii", trunk(5))
    shutil.copyfile(tmp_path / "other.nii", source)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert prepare(scans, tmp_path / "store").replaced == (str(source),)
    assert old not in list_ids(tmp_path / "store")


@pytest.mark.parametrize("how", ["touched", "replaced by its copy", "closed and opened"])
def test_files_with_new_times_and_old_bytes_are_not_decoded_again(scans, tmp_path, monkeypatch, how):
    prepare(scans, tmp_path / "store")
    before, source = list_ids(tmp_path / "store"), scans / "case2.nii.gz"
    if how == "touched":
        os.utime(source, ns=(1, 1))
    elif how == "closed and opened":
        source.chmod(0o600)
    else:
        shutil.copy2(source, tmp_path / "copy")
        os.replace(tmp_path / "copy", source)
    read = count_reads(monkeypatch)
    summary = prepare(scans, tmp_path / "store")
    assert (summary.kept, summary.already, summary.replaced) == (3, 3, ())
    assert list_ids(tmp_path / "store") == before
    prepare(scans, tmp_path / "store")
    assert read == []


def test_two_sources_that_change_places_keep_both_scans(scans, tmp_path):
    prepare(scans, tmp_path / "store")
    before = list_ids(tmp_path / "store")
    for first, second in (("case0", "hidden"), ("case1", "case0"), ("hidden", "case1")):
        (scans / f"{first}.nii.gz").rename(scans / f"{second}.nii.gz")
    summary = prepare(scans, tmp_path / "store")
    assert len(summary.replaced) == 2
    assert list_ids(tmp_path / "store") == before


def test_a_scan_that_another_source_still_holds_stays(scans, nifti_of, trunk, tmp_path):
    shutil.copy(scans / "case0.nii.gz", scans / "copy.nii.gz")
    prepare(scans, tmp_path / "store")
    shared = name_of(scans / "copy.nii.gz")
    nifti_of(scans / "case0.nii.gz", trunk(8))
    summary = prepare(scans, tmp_path / "store")
    assert shared in list_ids(tmp_path / "store")
    assert str(scans / "copy.nii.gz") not in {one.source for one in summary.refusals}
    nifti_of(scans / "copy.nii.gz", trunk(9))
    prepare(scans, tmp_path / "store")
    assert shared not in list_ids(tmp_path / "store")
    assert len(list_ids(tmp_path / "store")) == 4


def test_a_source_that_can_no_longer_be_used_keeps_its_scan_and_says_so(scans, nifti_of, tmp_path):
    prepare(scans, tmp_path / "store")
    before = list_ids(tmp_path / "store")
    nifti_of(scans / "case1.nii.gz", np.arange(1000, dtype=np.int16).reshape(10, 10, 10) % 5)
    summary = prepare(scans, tmp_path / "store")
    reasons = {Path(one.source).name: one.reason for one in summary.refusals}
    assert reasons["case1.nii.gz"].endswith("; the scan prepared before is kept")
    assert list_ids(tmp_path / "store") == before


def test_a_vanished_source_keeps_its_scan_and_is_told_by_id(scans, tmp_path):
    prepare(scans, tmp_path / "store")
    gone = name_of(scans / "case1.nii.gz")
    (scans / "case1.nii.gz").unlink()
    summary = prepare(scans, tmp_path / "store")
    assert summary.vanished == (gone,)
    assert any(gone in note and "dagman store remove" in note for note in summary.notes)
    assert gone in list_ids(tmp_path / "store")
    # Of another folder nothing can be said.
    assert prepare(scans / "case0.nii.gz", tmp_path / "store").vanished == ()


def test_a_source_that_moved_has_not_vanished(scans, tmp_path):
    prepare(scans, tmp_path / "store")
    (scans / "deeper").mkdir()
    (scans / "case1.nii.gz").rename(scans / "deeper" / "renamed.nii.gz")
    summary = prepare(scans, tmp_path / "store")
    assert (summary.kept, summary.vanished, summary.replaced) == (3, (), ())


def test_a_series_in_whose_folder_a_slice_changed_is_replaced(write_dicom, trunk, tmp_path):
    matrix = np.diag([-4.0, -4.0, 4.0, 1.0])
    for number in range(2):
        write_dicom(tmp_path / "scans" / f"p{number}", trunk(number), matrix, PatientID=f"MRN-{number}")
    prepare(tmp_path / "scans", tmp_path / "store")
    import pydicom

    path = next((tmp_path / "scans" / "p1").iterdir())
    data = pydicom.dcmread(path)
    data.PixelData = bytes(data.PixelData[:-200]) + bytes(200)
    data.save_as(path)
    summary = prepare(tmp_path / "scans", tmp_path / "store")
    assert summary.replaced == (str(tmp_path / "scans" / "p1"),)
    assert len(list_ids(tmp_path / "store")) == 2


def test_a_corrected_patient_id_replaces_the_row_although_the_voxels_are_the_same(write_dicom, trunk, tmp_path):
    import pydicom

    folder = tmp_path / "scans" / "p0"
    for path in write_dicom(folder, trunk(0), np.diag([-4.0, -4.0, 4.0, 1.0]), PatientID="WRONG"):
        prepared_path = path
    prepare(folder, tmp_path / "store")
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.PatientID = "RIGHT"
        data.save_as(path)
    assert prepared_path.exists()
    prepare(folder, tmp_path / "store")
    (row,) = Store(tmp_path / "store").rows
    with use_key(find_key()):
        assert row.patient == name_patient("RIGHT")


def test_kept_headers_are_not_read_again_name_nobody_and_go_with_who_withdraws(write_dicom, trunk, tmp_path, monkeypatch):
    folder, store = tmp_path / "scans" / "p0", tmp_path / "store"
    write_dicom(folder, trunk(0), np.diag([-4.0, -4.0, 4.0, 1.0]), PatientID="MRN-0815")
    prepare(folder, store)
    assert (store / HEADERS).is_file()
    assert b"MRN-0815" not in every_byte(store)
    monkeypatch.setattr(discovery.dicom_headers, "read_header", lambda path: pytest.fail(f"{path} was read again"))
    assert prepare(folder, store).already == 1
    remove_scans(store, ["MRN-0815"])
    assert not (store / HEADERS).exists()


def test_a_store_from_before_learns_where_its_sources_lie(scans, nifti_of, trunk, tmp_path, monkeypatch):
    prepare(scans, tmp_path / "store")
    journal = tmp_path / "store" / "journal.jsonl"
    new = ("place", "root", "listed", "stamp", "digest")
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k not in new}) + "\n" for row in rows if "refused" not in row)
    )
    read = count_reads(monkeypatch)
    assert prepare(scans, tmp_path / "store").already == 3
    assert [Path(source).name for source in read] == ["labels.nii.gz"]
    changed = nifti_of(scans / "case0.nii.gz", trunk(6))
    assert prepare(scans, tmp_path / "store").replaced == (str(changed),)
    assert len(list_ids(tmp_path / "store")) == 3


def test_a_lost_journal_costs_no_scan(scans, tmp_path, monkeypatch):
    prepare(scans, tmp_path / "store")
    (tmp_path / "store" / "journal.jsonl").unlink()
    read = count_reads(monkeypatch)
    assert prepare(scans, tmp_path / "store").already == 3
    assert [Path(source).name for source in read] == ["labels.nii.gz"]


def test_a_writer_killed_between_the_new_version_and_the_old_one_leaves_one(scans, nifti_of, trunk, tmp_path, monkeypatch):
    import dagman.store.writer as writer

    prepare(scans, tmp_path / "store")
    old = name_of(scans / "case1.nii.gz")
    nifti_of(scans / "case1.nii.gz", trunk(7))

    def die(self, scan_id):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer._Writer, "_drop", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(scans, tmp_path / "store")
    assert old in {row.id for row in Store(tmp_path / "store").rows}
    prepare(scans, tmp_path / "store")
    assert old not in list_ids(tmp_path / "store")
    assert len(list_ids(tmp_path / "store")) == 3


def test_what_was_refused_is_not_read_again_until_it_changes(scans, trunk, nifti_of, tmp_path, monkeypatch):
    first = prepare(scans, tmp_path / "store")
    read = count_reads(monkeypatch)
    again = prepare(scans, tmp_path / "store")
    assert read == []
    assert again.refusals == first.refusals
    # What is asked for may change the answer, and so may the file.
    prepare_store(scans, tmp_path / "store", workers=1, modality="ct")
    assert [Path(source).name for source in read] == ["labels.nii.gz"]
    nifti_of(scans / "labels.nii.gz", trunk(8))
    assert prepare(scans, tmp_path / "store").kept == 4


def test_a_refusal_that_other_circumstances_would_change_is_tried_again(scans, tmp_path, monkeypatch):
    import dagman.store.series as series

    with monkeypatch.context() as patch:
        patch.setattr(series, "prepare_scan", lambda *arguments: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(StoreError, match="all 4 series were rejected"):
            prepare(scans, tmp_path / "store")
    assert prepare(scans, tmp_path / "store").kept == 3


def test_nothing_that_a_store_remembers_of_its_sources_names_a_path(nifti_of, trunk, tmp_path):
    nifti_of(tmp_path / "Quillfeather" / "Harkness.nii.gz", trunk(0))
    nifti_of(tmp_path / "Quillfeather" / "Oakley.nii.gz", np.arange(1000, dtype=np.int16).reshape(10, 10, 10) % 7)
    prepare(tmp_path / "Quillfeather", tmp_path / "store")
    journal = (tmp_path / "store" / "journal.jsonl").read_text()
    assert '"refused"' in journal
    assert not {name for name in ("Quillfeather", "Harkness", "Oakley", str(tmp_path)) if name in journal}


@pytest.mark.parametrize("how", ["the id", "the pseudonym", "the name in the files"])
def test_a_patient_who_withdraws_leaves_a_number_behind(scans, tmp_path, how):
    shutil.copy(scans / "case1.nii.gz", scans / "twin.nii.gz")
    prepare(scans, tmp_path / "store")
    scan_id = name_of(scans / "case1.nii.gz")
    row = Store(tmp_path / "store").row(scan_id)
    name = {"the id": scan_id, "the pseudonym": row.patient, "the name in the files": "case1"}[how]
    before = list_ids(tmp_path / "store")
    removal = remove_scans(tmp_path / "store", [name])
    assert (removal.scans, removal.patients, removal.left) == (1, 1, 2)
    assert list_ids(tmp_path / "store") == before - {scan_id}
    assert not locate_scan(tmp_path / "store", scan_id).exists()
    left = every_byte(tmp_path / "store")
    for trace in (scan_id, row.patient, row.content_hash, row.source_hash, row.checksum, "case1", "twin"):
        assert trace.encode() not in left, trace
    assert (tmp_path / "store" / "journal.jsonl").read_text().splitlines()[-1] == '{"removed": 1}'
    # What was refused for others is still listed, and the store goes on.
    assert "labels.nii.gz" in (tmp_path / "store" / "rejected.csv").read_text()
    for path in ("case1", "twin"):
        (scans / f"{path}.nii.gz").unlink()
    assert prepare(scans, tmp_path / "store").kept == 2


def test_a_patient_all_of_whose_scans_were_refused_can_withdraw(scans, tmp_path):
    prepare(scans, tmp_path / "store")
    assert remove_scans(tmp_path / "store", ["labels"]).patients == 1
    assert b"labels" not in every_byte(tmp_path / "store")


def test_one_unknown_name_removes_nothing(scans, tmp_path):
    prepare(scans, tmp_path / "store")
    before = list_ids(tmp_path / "store")
    with pytest.raises(StoreError, match=r"contains no scan or patient 'nobody', 'noone'\. See dagman store list"):
        remove_scans(tmp_path / "store", ["case1", "nobody", "noone"])
    assert list_ids(tmp_path / "store") == before


def test_a_removal_that_was_killed_is_completed_by_the_same_call(scans, tmp_path, monkeypatch):
    import dagman.store.upkeep.removal as removal

    prepare(scans, tmp_path / "store")
    (row, *_) = Store(tmp_path / "store").rows
    for step in ("keep_rows", "write_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(removal, step, lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                remove_scans(tmp_path / "store", [row.patient])
    assert remove_scans(tmp_path / "store", [row.patient]).left == 2
    assert row.id.encode() not in every_byte(tmp_path / "store")


def test_without_its_key_a_store_knows_patients_by_pseudonym_alone(scans, tmp_path):
    prepare(scans, tmp_path / "store")
    (row, *_) = Store(tmp_path / "store").rows
    with use_key(Key(bytes(32))):
        with pytest.raises(StoreError, match="the names in files need the store's --key"):
            remove_scans(tmp_path / "store", ["case1"])
        remove_scans(tmp_path / "store", [row.patient])
    assert len(list_ids(tmp_path / "store")) == 2
    make_key(tmp_path / "other.key")
    with pytest.raises(StoreError, match="was made with the key"):
        remove_scans(tmp_path / "store", ["case1"], key=tmp_path / "other.key")
